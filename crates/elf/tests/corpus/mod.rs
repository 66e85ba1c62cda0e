//! The corpus of kernel selftest objects, where there is one.
#![allow(dead_code)] // each test uses a part

use std::path::{Path, PathBuf};
use std::process::Command;

/// The unpacked corpus; its directory is removed with it.
pub struct Corpus {
    source: PathBuf,
    dir: PathBuf,
}

impl Drop for Corpus {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Corpus {
    /// Unpacks the corpus from `SKEP_CORPUS` or its place next to the repository; says so and gives `None` if it is absent.
    pub fn open(test: &str) -> Option<Corpus> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
        let source = std::env::var_os("SKEP_CORPUS").map_or(beside, PathBuf::from);
        if !source.join("objects.tar.xz").exists() {
            eprintln!("skipped: no corpus at {}", source.display());
            return None;
        }
        let dir = std::env::temp_dir().join(format!("skep-elf-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("temporary directory");
        let corpus = Corpus { source, dir };
        for archive in ["objects-6.12.tar.xz", "objects.tar.xz"].map(|a| corpus.file(a)).iter().filter(|a| a.exists()) {
            let status = Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(&corpus.dir).status();
            assert!(status.expect("tar").success(), "tar cannot unpack {}", archive.display());
        }
        Some(corpus)
    }

    /// A file of the corpus itself.
    pub fn file(&self, name: &str) -> PathBuf {
        self.source.join(name)
    }

    /// Paths of all objects, sorted.
    pub fn objects(&self) -> Vec<PathBuf> {
        objects_in(&self.dir.join("objects"))
    }

    /// Path of one object by its name without extension.
    pub fn object(&self, name: &str) -> PathBuf {
        self.dir.join("objects").join(format!("{name}.o"))
    }
}

/// Paths of the objects in a directory, sorted.
fn objects_in(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut paths: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "o")).collect();
    paths.sort();
    paths
}

/// The repository's own objects.
pub fn own_objects() -> Vec<PathBuf> {
    let bpf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf");
    [objects_in(&bpf), objects_in(&bpf.join("test"))].concat()
}
