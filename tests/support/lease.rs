//! A lease of a file, which makes a backup wait in front of it.

use super::sandbox::{Running, Sandbox};
use std::time::Duration;

/// A process that holds a lease. The next process that opens the file waits for it.
pub struct Lease {
    holder: Running,
    over: String,
}

impl Lease {
    /// Leases the file `path`, and creates it if it is missing. As soon as another process wants the file, runs the
    /// shell command `on_break` and then ends the lease. Without a command, the lease stays.
    pub fn hold(sandbox: &Sandbox, path: &str, on_break: Option<&str>) -> Lease {
        // Outside of the sources, and of directories that the command may remove.
        let name = path.replace('/', "_");
        let (ready, over) = (format!("{name}.ready"), sandbox.text(&format!("{name}.over")));
        let script = "
import fcntl, os, signal, subprocess, sys, time
path, ready, over, command = sys.argv[1:]
file = os.open(path, os.O_RDWR)
def give_back(*_):
    subprocess.run(command, shell=True, check=True)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, give_back if command else signal.SIG_IGN)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open(ready, 'w').close()
while not os.path.exists(over):
    time.sleep(0.02)
os.remove(over)
";
        if !sandbox.has(path) {
            sandbox.write(path, "leased");
        }
        let arguments = [path, &ready, &over, on_break.unwrap_or_default()];
        let holder = sandbox.tool("python3").args(["-c", script]).args(arguments).start();
        while !sandbox.has(&ready) {
            std::thread::sleep(Duration::from_millis(20));
        }
        sandbox.remove(&ready);
        Lease { holder, over }
    }

    /// Ends the lease. The command must have run without an error.
    pub fn end(self, sandbox: &Sandbox) {
        sandbox.write(&self.over, "");
        self.holder.wait().ok();
    }
}
