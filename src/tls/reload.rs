//! Files that are read again when they change: certificates are renewed while sessions live.
//!
//! The contents are compared, every few seconds, and not the times or names: so a file that is replaced, one that is
//! written over, and a symlink that is swapped (as Kubernetes does for a whole folder) are all seen, and no event is missed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::{Problem, files};

/// How often the files are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Files from which something is made.
pub trait Source: Clone + Send + Sync + 'static {
    /// What is made of them.
    type Loaded: Send + Sync + 'static;

    /// The files.
    fn files(&self) -> Vec<&Path>;

    /// Makes it of what the files hold now.
    ///
    /// # Errors
    /// Every file that cannot be used.
    fn load(&self) -> Result<Self::Loaded, Vec<Problem>>;
}

/// What was made of files, as of the last time that they were sound.
#[derive(Debug)]
pub struct Reloading<S: Source> {
    source: S,
    current: ArcSwap<S::Loaded>,
    /// What the files held when they were last looked at.
    seen: Mutex<Fingerprint>,
}

type Fingerprint = [u8; 32];

impl<S: Source> Reloading<S> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Every file that cannot be used.
    pub fn new(source: S) -> Result<Self, Vec<Problem>> {
        // Before they are read: a change meanwhile is seen the next time.
        let seen = Mutex::new(fingerprint(&source));
        let current = ArcSwap::from_pointee(source.load()?);
        Ok(Self { source, current, seen })
    }

    /// What is at work.
    pub fn current(&self) -> Arc<S::Loaded> {
        self.current.load_full()
    }

    /// Looks at the files, and takes what they hold when it has changed and is sound. `None` when it has not changed.
    /// Blocks while they are read.
    ///
    /// # Errors
    /// Every file that cannot be used, once: what was there before stays at work.
    pub fn look(&self) -> Option<Result<(), Vec<Problem>>> {
        let now = fingerprint(&self.source);
        if std::mem::replace(&mut *self.seen.lock(), now) == now {
            return None;
        }
        Some(self.source.load().map(|loaded| self.current.store(Arc::new(loaded))))
    }

    /// Looks at the files every 2 s until it is dropped everywhere else, and tells of each change.
    pub async fn watch(self: Arc<Self>, tell: impl Fn(Result<(), Vec<Problem>>)) {
        let weak = Arc::downgrade(&self);
        drop(self);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(this) = weak.upgrade() else { return };
            // A disk that hangs holds one thread of those that may block.
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            if let Ok(Some(outcome)) = looked {
                tell(outcome);
            }
        }
    }
}

/// What the files hold. One that cannot be read holds that.
fn fingerprint(source: &impl Source) -> Fingerprint {
    let mut hash = Sha256::new();
    for file in source.files() {
        match files::read(file) {
            Ok(bytes) => {
                hash.update([1]);
                hash.update(Sha256::digest(&bytes));
            }
            Err(_) => hash.update([0]),
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::KeyPair;
    use crate::tls::fixtures::Folder;
    use crate::tls::server::{MinVersion, ServerFiles};

    fn files(pair: KeyPair) -> ServerFiles {
        ServerFiles { certificates: vec![pair], client_auth: None, min_version: MinVersion::Tls12, http2: false }
    }

    #[test]
    fn a_change_is_taken_once_and_a_faulty_one_leaves_what_was_there() {
        let folder = Folder::new();
        let (pair, other) = (folder.certificate("a", &["a.example"]), folder.certificate("b", &["a.example"]));
        let reloading = Reloading::new(files(pair.clone())).expect("sound");
        let first = reloading.current();
        assert!(reloading.look().is_none());
        std::fs::copy(&other.cert_file, &pair.cert_file).expect("copied");
        let problems = reloading.look().expect("a change").expect_err("the key is not that of the certificate");
        assert!(problems[0].to_string().contains("a.key: it is not the key"), "{problems:?}");
        assert!(reloading.look().is_none(), "it is told once");
        assert!(Arc::ptr_eq(&first, &reloading.current()));
        std::fs::copy(&other.key_file, &pair.key_file).expect("copied");
        reloading.look().expect("a change").expect("sound");
        assert!(!Arc::ptr_eq(&first, &reloading.current()));
        std::fs::remove_file(&pair.key_file).expect("removed");
        reloading.look().expect("a change").expect_err("a file is gone");
    }

    #[test]
    fn a_swapped_symlink_is_a_change() {
        let folder = Folder::new();
        for (name, version) in [("a", "one"), ("b", "two")] {
            let pair = folder.certificate(name, &["a.example"]);
            std::fs::create_dir(folder.path(version)).expect("a folder");
            std::fs::rename(&pair.cert_file, folder.path(version).join("tls.crt")).expect("moved");
            std::fs::rename(&pair.key_file, folder.path(version).join("tls.key")).expect("moved");
        }
        let data = folder.path("..data");
        std::os::unix::fs::symlink("one", &data).expect("a symlink");
        let pair = KeyPair { cert_file: data.join("tls.crt"), key_file: data.join("tls.key") };
        let reloading = Reloading::new(files(pair)).expect("sound");
        std::os::unix::fs::symlink("two", folder.path("..new")).expect("a symlink");
        std::fs::rename(folder.path("..new"), &data).expect("swapped");
        reloading.look().expect("a change").expect("sound");
    }
}
