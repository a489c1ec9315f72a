//! Files that the program makes, and unmakes.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where sockets lie when nobody says where: `usernet` in `$XDG_RUNTIME_DIR`, or `usernet-UID` under
/// the temporary directory.
pub(crate) fn default_folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime.filter(|folder| folder.is_absolute() && folder.is_dir()) {
        Some(folder) => folder.join("usernet"),
        None => std::env::temp_dir().join(format!("usernet-{}", uid())),
    }
}

/// Where a daemon that is not told otherwise answers `usernet ctl`.
pub(crate) fn default_control() -> PathBuf {
    default_folder().join("control.sock")
}

/// The default folder, for as long as this lives and others use it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Makes the folder, or finds it. It is private: nobody else may enter it.
    ///
    /// # Errors
    /// It cannot be made, or the one that is there belongs to or is open to somebody else. The message ends with
    /// what names `another`.
    pub(crate) fn make(path: PathBuf, another: &str) -> Result<Self> {
        if let Err(error) = DirBuilder::new().mode(0o700).create(&path)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make {} ({another})", path.display()));
        }
        // Not followed: the temporary directory is everybody's, and so might a link in it be.
        let found =
            fs::symlink_metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        if !found.is_dir() || found.uid() != uid() || found.mode() & 0o077 != 0 {
            bail!(
                "{0} is not a private folder of yours: remove it, or run `chmod 0700 {0}` ({another})",
                path.display()
            );
        }
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Another daemon may have a socket in it still.
        let _ = fs::remove_dir(&self.0);
    }
}

/// A file or socket that is removed when this goes, unless somebody has put another in its place.
#[derive(Debug)]
pub(crate) struct MadeFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl MadeFile {
    /// Takes charge of the file at `path`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn new(path: &Path) -> std::io::Result<Self> {
        // A relative path would mean another file once the working directory has changed.
        let path = std::path::absolute(path)?;
        Ok(Self { inode: inode(&path)?, path })
    }
}

impl Drop for MadeFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|now| now == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_is_private_and_goes_when_empty() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("usernet");
        let folder = Folder::make(path.clone(), "").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let file = path.join("control.sock");
        fs::write(&file, "").unwrap();
        drop(Folder::make(path.clone(), "").unwrap());
        assert!(file.exists());
        fs::remove_file(&file).unwrap();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_open_to_others_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let why = Folder::make(temp.path().into(), "--listen names another").err().unwrap().to_string();
        assert!(why.contains("chmod 0700") && why.ends_with("(--listen names another)"), "{why}");
        let link = temp.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(Folder::make(link, "").is_err());
    }

    #[test]
    fn only_the_file_that_was_made_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("pid");
        fs::write(&path, "1").unwrap();
        drop(MadeFile::new(&path).unwrap());
        assert!(!path.exists());

        fs::write(&path, "1").unwrap();
        let made = MadeFile::new(&path).unwrap();
        fs::rename(&path, temp.path().join("old")).unwrap();
        fs::write(&path, "2").unwrap();
        drop(made);
        assert!(path.exists());
    }
}
