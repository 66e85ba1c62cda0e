//! Timers, workqueues and task work: fields of map values that name a function to be called later.

use crate::env::Env;
use crate::fail::{Check, invalid};
use crate::object::FieldKind;
use crate::reg::{Kind, Reg};

/// Which map a value is of: the map, and for inner maps which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MapIdentity {
    pub map: u32,
    pub uid: u32,
}

impl MapIdentity {
    /// That of a map or a value of one.
    pub fn of(reg: &Reg) -> MapIdentity {
        MapIdentity { map: reg.what, uid: reg.size }
    }
}

/// True if values of the map name functions, so that it matters which of several inner maps one is.
pub(crate) fn has_identity(kind: FieldKind) -> bool {
    matches!(kind, FieldKind::Timer | FieldKind::Workqueue | FieldKind::TaskWork)
}

impl Env<'_> {
    /// A map value is given where its field of this kind is; gives the map.
    pub fn check_async_field(&self, r: u8, reg: &Reg, kind: FieldKind) -> Check<MapIdentity> {
        let name = kind.name();
        let Some(var) = reg.num.as_const() else {
            return invalid!(SpecialField, "r{r} is {}; a {name} is at a constant offset", reg.describe());
        };
        let Some(field) = self.record_of(reg).and_then(|record| record.first(kind)) else {
            return invalid!(SpecialField, "r{r} is {}, which has no {name}", reg.describe());
        };
        let off = i64::from(reg.off).wrapping_add(var as i64);
        if off != i64::from(field.off) {
            return invalid!(SpecialField, "r{r} points to offset {off}; the {name} is at {}", field.off);
        }
        Ok(MapIdentity::of(reg))
    }

    /// The map given with a timer is the one that it is in.
    pub fn check_same_map(&self, r: u8, reg: &Reg, owner: MapIdentity) -> Check {
        if MapIdentity::of(reg) != owner {
            return invalid!(
                UnknownMap,
                "r{r} is map {}, not the one that the field in r1 is in",
                self.map_name(reg.what)
            );
        }
        Ok(())
    }

    /// What a function that is called for a value of a map gets: map, key and value.
    pub fn async_arguments(&self, map: Option<u32>, uid: u32) -> Check<[Reg; 5]> {
        let map = map.unwrap_or(u32::MAX);
        let (key, value) = self.element(map)?;
        let whole = Reg { what: map, ..Reg::pointer(Kind::Map) };
        let of = |r: Reg| Reg { size: uid, ..r };
        Ok([of(whole), of(key), of(value), Reg::NOT_INIT, Reg::NOT_INIT])
    }
}
