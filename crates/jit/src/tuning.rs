//! How machine code is made.

use crate::Options;

/// Instructions that not every processor has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Features {
    pub(crate) bmi2: bool,
    pub(crate) movbe: bool,
}

impl Features {
    /// Those of this machine.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn host() -> Features {
        Features {
            bmi2: std::arch::is_x86_feature_detected!("bmi2"),
            movbe: std::arch::is_x86_feature_detected!("movbe"),
        }
    }

    /// Those of this machine.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn host() -> Features {
        Features::default()
    }
}

/// How code is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    pub(crate) features: Features,
    pub(crate) optimise: bool,
    pub(crate) budget: bool,
    /// Seed of what blinds the program's numbers.
    pub(crate) blinding: Option<u64>,
    /// The main function is called by other code.
    pub(crate) extends: bool,
}

impl Tuning {
    pub(crate) fn of(options: &Options) -> Tuning {
        let seed = || {
            use std::hash::{BuildHasher, Hasher};
            std::hash::RandomState::new().build_hasher().finish()
        };
        Tuning {
            features: Features::host(),
            optimise: true,
            budget: options.budget,
            blinding: options.harden.then(seed),
            extends: options.extends.is_some(),
        }
    }
}
