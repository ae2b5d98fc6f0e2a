//! System accounts of a forge's servers.

use super::sandbox::{Run, is_root};
use std::path::Path;
use std::sync::Mutex;

/// Account of a process or owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// Returns the account of root.
    pub fn root() -> Account {
        Account { uid: 0, gid: 0 }
    }

    /// Returns the system account of this name and creates it if it is missing. Without root,
    /// returns the account of the tests, because no other can be used.
    pub fn named(name: &str) -> Account {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        if !is_root() {
            return Account {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            };
        }
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Other test processes add accounts too, and their tools wait for the lock only briefly.
        for _ in 0..50 {
            if let Some(account) = Account::find(name) {
                return account;
            }
            Run::limited("useradd")
                .args(["--system", "--no-create-home", "--user-group"])
                .args(["--home-dir", "/nonexistent", "--shell", "/bin/sh", name])
                .run();
        }
        panic!("there is no account {name}, and none can be added");
    }

    fn find(name: &str) -> Option<Account> {
        let user = nix::unistd::User::from_name(name).expect("accounts can be read")?;
        Some(Account { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
    }

    /// Prepares a run of a program by this account.
    pub fn run(&self, program: impl AsRef<Path>) -> Run {
        let run = Run::program("setpriv").args(["--pdeathsig", "KILL"]);
        self.options(run).args([program.as_ref()])
    }

    /// Adds setpriv's options for this account.
    pub fn options(&self, setpriv: Run) -> Run {
        // Directories on root's path may be closed to others.
        let setpriv = setpriv.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        if !is_root() {
            return setpriv;
        }
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        setpriv.args(["--reuid", &uid, "--regid", &gid, "--clear-groups"])
    }

    /// Makes this account the owner of a path.
    pub fn own(&self, path: &Path) {
        if is_root() {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
