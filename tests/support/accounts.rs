//! The system accounts that a forge's servers run as.

use super::sandbox::{Run, is_root};
use std::path::Path;
use std::sync::Mutex;

/// Whom a process runs as and a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// The account that may do everything.
    pub fn root() -> Account {
        Account { uid: 0, gid: 0 }
    }

    /// The system account of this name, made if it is missing. Who is not root
    /// cannot be anybody else: then it is the account of the tests.
    pub fn named(name: &str) -> Account {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        if !is_root() {
            return Account {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            };
        }
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Other test processes add accounts as well, and wait for each other only briefly.
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

    /// A program to be run by this account.
    pub fn run(&self, program: impl AsRef<Path>) -> Run {
        let run = Run::program("setpriv").args(["--pdeathsig", "KILL"]);
        self.options(run).args([program.as_ref()])
    }

    /// The options of setpriv that make it this account.
    pub fn options(&self, setpriv: Run) -> Run {
        // What root has on its path need not be open to others.
        let setpriv = setpriv.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        if !is_root() {
            return setpriv;
        }
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        setpriv.args(["--reuid", &uid, "--regid", &gid, "--clear-groups"])
    }

    /// Makes something this account's.
    pub fn own(&self, path: &Path) {
        if is_root() {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}
