"""Two real pg_dump files of a real, throw-away PostgreSQL cluster.

The first is written after loading GitLab-like tables, the second after about
5 % of the rows were updated and 1 % inserted."""

import glob
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time

import forge

NAME = "gitlabhq_production"

SCHEMA = """
CREATE TABLE users (id bigint PRIMARY KEY, username text NOT NULL UNIQUE, name text NOT NULL,
  email text NOT NULL, encrypted_password text NOT NULL, sign_in_count integer DEFAULT 0,
  current_sign_in_at timestamp, created_at timestamp NOT NULL, bio text);
CREATE TABLE projects (id bigint PRIMARY KEY, name text, path text, description text,
  creator_id bigint REFERENCES users, namespace_id bigint, star_count integer DEFAULT 0,
  visibility_level integer NOT NULL, created_at timestamp, last_activity_at timestamp,
  runners_token_encrypted text);
CREATE TABLE routes (id bigint PRIMARY KEY, source_id bigint NOT NULL, source_type text NOT NULL,
  path text NOT NULL, name text);
CREATE TABLE issues (id bigint PRIMARY KEY, iid integer, project_id bigint REFERENCES projects,
  author_id bigint, title text, description text, state_id smallint, created_at timestamp,
  updated_at timestamp);
CREATE TABLE merge_requests (id bigint PRIMARY KEY, iid integer, target_project_id bigint REFERENCES projects,
  source_branch text, target_branch text, author_id bigint, title text, description text,
  merge_commit_sha text, state_id smallint, created_at timestamp, updated_at timestamp);
CREATE TABLE notes (id bigint PRIMARY KEY, note text, noteable_type text, noteable_id bigint,
  author_id bigint, project_id bigint REFERENCES projects, discussion_id text, system boolean NOT NULL,
  created_at timestamp, updated_at timestamp);
CREATE TABLE ci_builds (id bigint PRIMARY KEY, status text, name text, stage text, ref text,
  project_id bigint, commit_id bigint, runner_id bigint, options text, token_encrypted text,
  coverage double precision, queued_at timestamp, started_at timestamp, finished_at timestamp);
CREATE INDEX ON issues (project_id, iid);
CREATE INDEX ON notes (noteable_type, noteable_id);
CREATE INDEX ON ci_builds (project_id, status);
"""

# Share of the dump's bytes per table; users, projects and routes are counted by rows.
SHARES = {"issues": 0.14, "merge_requests": 0.12, "notes": 0.52, "ci_builds": 0.22}

UPDATED = ["users", "projects", "issues", "merge_requests", "notes", "ci_builds"]

UPDATES = """
UPDATE users SET sign_in_count = sign_in_count + 1, current_sign_in_at = '2025-03-02 02:11:09' WHERE {where};
UPDATE projects SET last_activity_at = '2025-03-02 01:00:00', star_count = star_count + 1 WHERE {where};
UPDATE issues SET state_id = 2, updated_at = '2025-03-02 00:30:00' WHERE {where};
UPDATE merge_requests SET state_id = 3, merge_commit_sha = md5(id::text) || '00000000', updated_at = '2025-03-02 00:40:00'
  WHERE {where};
UPDATE notes SET note = note || E'\\n\\nEdited: ' || reverse(left(note, 60)), updated_at = '2025-03-02 00:50:00'
  WHERE {where};
UPDATE ci_builds SET status = 'success', finished_at = '2025-03-02 01:10:00' WHERE {where};
VACUUM;
"""

# About one row in twenty changes between the two nights, scattered over the table.
SCATTERED = "id * 7919 % 20 = 3"


def updates(where):
    """Return SQL that changes these rows of each table in UPDATED."""
    return UPDATES.replace("{where}", where)


class Rows:
    """Lines in COPY format of every table."""

    def __init__(self, words, projects):
        self.w, self.rng, self.projects = words, words.rng, projects
        self.users = max(20, int(projects * 1.5))
        self.next = {}

    def when(self):
        return f"{forge.stamp(forge.EPOCH - self.rng.randint(0, 100000000), ' ')}.{self.rng.randint(0, 999999):06d}"

    def token(self, n=24):
        return f"{self.rng.getrandbits(4 * n):0{n}x}"

    def body(self, mean):
        size = min(int(self.rng.lognormvariate(0, 1.0) * mean) + 20, 20000)
        w = self.w
        t = w.log(size) if self.rng.random() < 0.06 else w.text(size)
        return t.rstrip().replace("\\", "\\\\").replace("\n", "\\n").replace("\t", " ")

    def one(self, table):
        i = self.next[table] = self.next.get(table, 0) + 1
        r, w = self.rng, self.w
        user, project = r.randint(1, self.users), 1 + int(self.projects * r.random() ** 2)
        t = self.when()
        if table == "users":
            n = w.name().replace("-", ".")
            cols = (i, f"{n}{i}", n.replace(".", " ").title(), f"{n}{i}@forge.example", "$2a$10$" + self.token(52),
                    r.randint(0, 900), self.when(), t, self.body(60))
        elif table == "projects":
            n = w.name()
            cols = (i, n, n, self.body(80), user, r.randint(1, 400), r.randint(0, 50), r.choice((0, 10, 20)), t,
                    self.when(), self.token(64))
        elif table == "routes":
            n = w.name()
            cols = (i, i, "Project", f"{w.name()}/{n}", n)
        elif table == "issues":
            cols = (i, r.randint(1, 3000), project, user, w.sentence()[:120], self.body(500), r.choice((1, 2)), t, self.when())
        elif table == "merge_requests":
            cols = (i, r.randint(1, 2000), project, w.name(), "main", user, w.sentence()[:120], self.body(450),
                    self.token(40), r.choice((1, 2, 3)), t, self.when())
        elif table == "notes":
            cols = (i, self.body(230), r.choice(("Issue", "MergeRequest", "Commit")), r.randint(1, 90000), user, project,
                    self.token(40), r.choice("ft"), t, self.when())
        else:
            cols = (i, r.choice(("success", "success", "failed", "canceled", "skipped")), f"{w.name()} {r.randint(1, 9)}/9",
                    r.choice(("build", "test", "lint", "deploy")), r.choice(("main", w.name())), project,
                    r.randint(1, 400000), r.randint(1, 60), '{"script":["' + " ".join(w.some(6)) + '"],"retry":2}',
                    self.token(64), f"{r.random() * 100:.2f}", t, self.when(), self.when())
        return "\t".join(map(str, cols)) + "\n"


class Cluster:
    """A private PostgreSQL cluster: a temporary directory, a socket in it, no TCP."""

    def __init__(self, near):
        found = [os.environ.get("PGBIN", "")] + sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
        found += [os.path.dirname(shutil.which("initdb") or "")]
        self.bin = next((b for b in found if b and os.path.exists(os.path.join(b, "initdb"))), None)
        if not self.bin:
            raise SystemExit("no PostgreSQL server found (Debian: postgresql-15), or set PGBIN")
        # The server does not run as root, so it must be able to enter its directories.
        self.base = tempfile.mkdtemp(prefix="pg-", dir=near)
        self.sock = tempfile.mkdtemp(prefix="pg-")
        self.user = []
        if os.geteuid() == 0:
            self.user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            for d in (self.base, self.sock):
                shutil.chown(d, "nobody", "nogroup")
        self.env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", "HOME": self.base,
                    "PGHOST": self.sock, "PGUSER": "postgres"}
        self.proc = self.log = None

    def run(self, *argv, **kw):
        p = subprocess.run([*argv], env=self.env, cwd=self.base, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **kw)
        if p.returncode:
            raise SystemExit(f"failed: {' '.join(argv)}\n{p.stderr.decode(errors='replace')}")

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self):
        data = os.path.join(self.base, "data")
        self.run(*self.user, f"{self.bin}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                 "--locale=C", "-N")
        opts = {"listen_addresses": "", "unix_socket_directories": self.sock, "fsync": "off", "autovacuum": "off",
                "synchronous_commit": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0",
                "max_wal_size": "4GB", "shared_buffers": "256MB", "timezone": "UTC"}
        argv = [*self.user, f"{self.bin}/postgres", "-D", data]
        for k, v in opts.items():
            argv += ["-c", f"{k}={v}"]
        self.log = open(os.path.join(self.base, "log"), "wb")
        self.proc = subprocess.Popen(argv, env=self.env, cwd=self.base, stdout=self.log, stderr=self.log)
        for _ in range(300):
            if subprocess.run([f"{self.bin}/pg_isready", "-q"], env=self.env).returncode == 0:
                break
            if self.proc.poll() is not None:
                raise SystemExit("PostgreSQL did not start:\n" + open(self.log.name).read())
            time.sleep(0.2)
        self.run(f"{self.bin}/createdb", NAME)

    def __exit__(self, *_):
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(signal.SIGINT)  # the "fast" shutdown, of our own process only
            self.proc.wait()
        if self.log:
            self.log.close()
        shutil.rmtree(self.base, ignore_errors=True)
        shutil.rmtree(self.sock, ignore_errors=True)

    def sql(self, text):
        self.run(f"{self.bin}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", NAME, input=text.encode())

    def load(self, table, lines):
        path = os.path.join(self.base, "rows")
        with open(path, "w") as f:
            f.writelines(lines)
        self.sql(f"\\copy {table} from '{path}'")
        os.unlink(path)

    def output(self, text):
        """Return the output of a query."""
        argv = [f"{self.bin}/psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", NAME, "-c", text]
        p = subprocess.run(argv, env=self.env, cwd=self.base, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if p.returncode:
            raise SystemExit(f"failed: {' '.join(argv)}\n{p.stderr.decode(errors='replace')}")
        return p.stdout

    def dump(self, path, *options):
        """Write a dump: plain, or with these options of pg_dump."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        argv = [f"{self.bin}/pg_dump", "-d", NAME, "-f", path, *options]
        # Newer releases write a random key into each plain dump unless one is given.
        if not options and b"--restrict-key" in subprocess.run([f"{self.bin}/pg_dump", "--help"], stdout=subprocess.PIPE).stdout:
            argv.append("--restrict-key=forge")
        self.run(*argv)


def make(day1, day2, size, projects, near, seed=11):
    """Write the two dumps, each of about `size` bytes."""
    rows = Rows(forge.Words(seed), projects)
    with Cluster(near) as pg:
        pg.sql(SCHEMA)
        used, counts = 0, {}

        def some(table, rows_wanted=None, bytes_wanted=None):
            nonlocal used
            n = have = 0
            while (n < rows_wanted) if rows_wanted is not None else (have < bytes_wanted):
                line = rows.one(table)
                n, have = n + 1, have + len(line)
                yield line
            counts[table] = counts.get(table, 0) + n
            used += have

        pg.load("users", some("users", rows.users))
        pg.load("projects", some("projects", projects))
        pg.load("routes", some("routes", projects))
        rest = max(size - used - 8000, 50000)
        for table, share in SHARES.items():
            pg.load(table, some(table, bytes_wanted=rest * share))
        pg.dump(day1)
        pg.sql(updates(SCATTERED))
        for table in list(SHARES):
            pg.load(table, some(table, rows_wanted=max(1, counts[table] // 100)))
        pg.dump(day2)
