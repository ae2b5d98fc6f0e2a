//! Locations of stores, as users write them.

use forge::mask::masked;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use store::entry::Displayed;

/// Returns the local directory that a location names, or the reason why it names none.
///
/// A colon before the first slash marks a remote location in every other program: `sftp:host:/dir`,
/// `s3://bucket`, `user@host:/dir`. Users hardly mean a local directory of such a name.
/// `file:///dir` is a local directory.
pub fn local(place: PathBuf) -> Result<PathBuf, String> {
    let bytes = place.as_os_str().as_bytes();
    if let Some(path) = bytes.strip_prefix(b"file://").filter(|path| path.starts_with(b"/")) {
        return Ok(Path::new(std::ffi::OsStr::from_bytes(path)).to_owned());
    }
    let first = bytes.split(|byte| *byte == b'/').next().unwrap_or_default();
    // As a user types it.
    let plain = place.to_str().filter(|text| !text.chars().any(char::is_control));
    let shown = masked(&plain.map_or_else(|| place.displayed(), str::to_owned));
    if first.contains(&b':') {
        return Err(format!(
            "remote stores are not supported yet; for a directory of that name write ./{shown}"
        ));
    }
    if first.starts_with(b"~") {
        return Err(format!(
            "the shell did not expand ~; write the path in full, or ./{shown} for a directory of that name"
        ));
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_stores_are_refused() {
        for remote in [
            "sftp:user@host:/dir",
            "sftp://host/dir",
            "s3:s3.amazonaws.com/bucket",
            "s3://bucket/dir",
            "user@host:/x",
            "host:x",
            "[::1]:/x",
            "rest:https://host/",
            "b2:bucket:dir",
            "azure:container:/",
            "rclone:remote:dir",
            "https://host/x",
            "file://host/x",
            "file:x",
            "C:\\x",
        ] {
            let error = local(remote.into()).expect_err(remote);
            assert!(error.ends_with(&format!("write ./{remote}")), "{error}");
            let spelled = PathBuf::from(format!("./{remote}"));
            assert_eq!(local(spelled.clone()), Ok(spelled));
        }
        for tilde in ["~", "~/store", "~root/store"] {
            assert!(local(tilde.into()).expect_err(tilde).contains("in full"));
        }
    }

    #[test]
    fn local_paths_are_accepted() {
        for (written, wanted) in [
            ("store", "store"),
            ("/srv/a:b", "/srv/a:b"),
            ("dir/sftp:x", "dir/sftp:x"),
            ("../a:b", "../a:b"),
            ("file:///srv/store", "/srv/store"),
            ("@host/x", "@host/x"),
        ] {
            assert_eq!(local(written.into()), Ok(wanted.into()), "{written}");
        }
    }
}
