//! A lease of a file, or a mark on a directory, which makes a backup wait in front of it.

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
        Lease::started(sandbox, path, script, on_break.unwrap_or_default())
    }

    /// Marks the directory `path`. When another process opens it the first time, runs the shell
    /// command `on_open` before that process can go on.
    pub fn hold_dir(sandbox: &Sandbox, path: &str, on_open: &str) -> Lease {
        let script = "
import ctypes, os, struct, subprocess, sys, time
path, ready, over, command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
CLASS_CONTENT, MARK_ADD, OPEN_PERM, ON_DIR, AT_FDCWD, ALLOW = 4, 1, 0x10000, 0x40000000, -100, 1
marks = libc.fanotify_init(CLASS_CONTENT, os.O_RDONLY)
mask = ctypes.c_uint64(OPEN_PERM | ON_DIR)
if marks < 0 or libc.fanotify_mark(marks, MARK_ADD, mask, AT_FDCWD, path.encode()) != 0:
    raise OSError(ctypes.get_errno(), 'fanotify')
open(ready, 'w').close()
event = struct.unpack_from('=IBBHQii', os.read(marks, 4096))
subprocess.run(command, shell=True, check=True)
os.write(marks, struct.pack('=iI', event[5], ALLOW))
os.close(marks)
while not os.path.exists(over):
    time.sleep(0.02)
os.remove(over)
";
        Lease::started(sandbox, path, script, on_open)
    }

    /// Ends the lease. The command must have run without an error.
    pub fn end(self, sandbox: &Sandbox) {
        sandbox.write(&self.over, "");
        self.holder.wait().ok();
    }

    /// Runs a script with these arguments until it holds the path.
    fn started(sandbox: &Sandbox, path: &str, script: &str, command: &str) -> Lease {
        // Outside of the sources, and of directories that the command may remove.
        let name = path.replace('/', "_");
        let (ready, over) = (format!("{name}.ready"), sandbox.text(&format!("{name}.over")));
        let arguments = [path, &ready, &over, command];
        let holder = sandbox.tool("python3").args(["-c", script]).args(arguments).start();
        while !sandbox.has(&ready) {
            std::thread::sleep(Duration::from_millis(20));
        }
        sandbox.remove(&ready);
        Lease { holder, over }
    }
}
