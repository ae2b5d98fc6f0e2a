#!/usr/bin/env python3
"""Restores a Forgekeep snapshot without Forgekeep: restore.py STORE SNAPSHOT TARGET

Needs Python 3.8 and the programs zstd and b3sum. SNAPSHOT is the begin of a name in
STORE/snapshots; TARGET must not exist. docs/format.md explains what is read here.
Damage is reported and the rest restored; the exit status is then 1.
Memory: about 300 bytes for each chunk of the store.
"""
import os, stat, subprocess, sys, tempfile
from struct import iter_unpack, unpack

OPEN_SEGMENTS = 16  # so many segments lie decompressed in temporary files
failures = 0


def failed(what, why):
    global failures
    failures += 1
    print(f"{os.fsdecode(what)!r}: {why!r}", file=sys.stderr)


def run(*command, **options):
    return subprocess.run(command, check=True, **options).stdout


def cbor(data, at=0):
    """The value that begins at data[at], and where the next one begins."""
    major, n, at = data[at] >> 5, data[at] & 31, at + 1
    if n > 27 or major == 6:
        raise ValueError("not CBOR as Forgekeep writes it")
    if n > 23:
        width = 1 << (n - 24)
        n, at = int.from_bytes(data[at : at + width], "big"), at + width
    if major in (2, 3):  # bytes, text
        if at + n > len(data):
            raise ValueError("cut off")
        return data[at : at + n], at + n
    if major in (4, 5):  # array, map
        items = []
        for _ in range(n * (major - 3)):
            item, at = cbor(data, at)
            items.append(item)
        return (items if major == 4 else dict(zip(items[::2], items[1::2]))), at
    return {0: n, 1: -1 - n, 7: {20: False, 21: True}.get(n)}[major], at


class Chunks:
    """All chunks of the segments whose bytes match their names."""

    def __init__(self, store):
        self.place, self.open = {}, {}
        os.chdir(os.path.join(store, "segments"))  # b3sum escapes odd names; these are none
        names = sorted(os.path.join(d, f) for d in os.listdir() for f in os.listdir(d))
        for some in (names[n : n + 500] for n in range(0, len(names), 500)):
            # It fails if it cannot read a file, and tells of the others all the same.
            out = subprocess.run(["b3sum", *some], stdout=subprocess.PIPE, text=True).stdout
            sums = {line[66:]: line[:64] for line in out.splitlines()}
            for name in some:
                if sums.get(name) == name[3:]:
                    self.read_table(name)
                else:
                    failed(name, "its bytes do not match its name; it is left out")

    def read_table(self, name):
        with open(name, "rb") as file:
            file.seek(-56, os.SEEK_END)  # the trailer
            offset, rows = unpack("<16x2I32x", file.read())
            file.seek(offset + 16)  # the table, after magic, length and tag
            plain = 0
            for id, _, _, plain_len in iter_unpack("<32s3I", file.read(44 * rows)):
                self.place[id] = (name, plain, plain_len)
                plain += plain_len  # zstd prints the chunks one after the other

    def get(self, id):
        if id not in self.place:
            raise ValueError(f"chunk {id.hex()} is in no intact segment")
        name, offset, length = self.place[id]
        file = self.open.pop(name, None)
        if file is None:
            if len(self.open) >= OPEN_SEGMENTS:
                self.open.pop(next(iter(self.open))).close()
            file = tempfile.TemporaryFile()
            run("zstd", "-qdc", name, stdout=file)
        self.open[name] = file  # the last one used goes last
        return os.pread(file.fileno(), length, offset)


def read_snapshot(store, prefix):
    """The record; each half of its file is one copy."""
    directory = os.path.join(store, "snapshots")
    found = [name for name in os.listdir(directory) if name.startswith(prefix)]
    if len(found) != 1:
        sys.exit(f"{prefix} fits {len(found)} snapshots")
    with open(os.path.join(directory, found[0]), "rb") as file:
        both = file.read()
    for half in (both[: len(both) // 2], both[len(both) // 2 :]):
        plain = subprocess.run(["zstd", "-qdc"], input=half, stdout=subprocess.PIPE).stdout
        if run("b3sum", input=plain, stdout=subprocess.PIPE)[:64].decode() == found[0]:
            return cbor(plain)[0]
    sys.exit(f"both copies of snapshot {found[0]} are damaged")


def entries(chunks, page, first=b""):
    """Path, owner and fields of all entries of a page and those below it."""
    try:
        _, level, *rest = cbor(chunks.get(page))[0]
    except Exception as error:
        return failed(first, f"from here on entries are lost: {error}")
    if level > 0:
        for first, child, _, _ in rest[0]:
            yield from entries(chunks, child, first)
        return
    owners, path = rest[0], b""
    for entry in rest[1]:
        path = path[: entry.get(0, 0)] + entry[1]
        yield path, owners[entry[4]], entry


def extents(chunks, recipe, level):
    """The extents of a file, down through recipe chunks."""
    for extent in recipe:
        if level == 0:
            yield extent
        elif level > 3:
            raise ValueError("a recipe of too many levels")
        else:
            yield from extents(chunks, cbor(chunks.get(extent[0]))[0], level - 1)


def open_dir(target, parts):
    """Opens a directory below target step by step, never through a symbolic link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    fd = os.open(target, flags)
    for part in parts:
        above = fd
        try:
            try:
                fd = os.open(part, flags, dir_fd=above)
            except FileNotFoundError:  # its entry is lost
                os.mkdir(part, 0o700, dir_fd=above)
                fd = os.open(part, flags, dir_fd=above)
        finally:
            os.close(above)
    return fd


def set_metadata(parent, name, owner, entry):
    """Owner, mode, attributes, time: in this order, each undoes parts of the ones after it."""
    at = {"dir_fd": parent, "follow_symlinks": False}
    if os.geteuid() == 0:
        os.chown(name, owner[0], owner[1], **at)
    if entry[2] != 3:
        os.chmod(name, entry[3], dir_fd=parent)
    seen = b"/proc/self/fd/%d/%s" % (parent, name)  # setxattr knows no dir_fd
    attributes = entry.get(11, [])
    for key, value in zip(attributes[::2], attributes[1::2]):
        try:
            os.setxattr(seen, key, value, follow_symlinks=False)
        except OSError as error:
            failed(name, f"attribute {key}: {error}")
    if 5 in entry:
        os.utime(name, ns=(entry[5][0] * 10**9 + entry[5][1],) * 2, **at)


def write_file(chunks, parent, name, entry):
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with open(os.open(name, flags, 0o600, dir_fd=parent), "wb", buffering=0) as file:
        file.truncate(entry.get(8, 0))
        file.write(entry.get(13, b""))
        at = 0
        for extent in extents(chunks, entry.get(14, []), entry.get(15, 0)):
            if len(extent) == 1:  # a hole
                at += extent[0]
                continue
            id, length, offset = (*extent, 0)[:3]
            data = chunks.get(id)[offset : offset + length]
            if len(data) != length or os.pwrite(file.fileno(), data, at) != length:
                raise ValueError("a slice could not be written completely")
            at += length


def make(chunks, target, parent, name, path, entry, links):
    """Makes one entry; true if it is another name of one that has its metadata already."""
    kind, node = entry[2], os.makedev(*entry.get(12, (0, 0)))
    inode = (entry[10][0], entry.get(7, 0)) if 10 in entry else None
    if inode in links:
        *first, first_name = links[inode].split(b"/")
        other = open_dir(target, first)
        try:
            os.link(first_name, name, src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(other)
        return True
    if kind == 1:
        try:
            write_file(chunks, parent, name, entry)
        except BaseException as error:
            if not isinstance(error, FileExistsError):
                os.unlink(name, dir_fd=parent)  # never leave a file with wrong content
            raise
    elif kind == 2:
        os.mkdir(name, 0o700, dir_fd=parent)
    elif kind == 3:
        os.symlink(entry[9], name, dir_fd=parent)
    else:
        types = {4: stat.S_IFIFO, 5: stat.S_IFSOCK, 6: stat.S_IFCHR, 7: stat.S_IFBLK}
        os.mknod(name, types[kind] | 0o600, node, dir_fd=parent)
    if inode:
        links[inode] = path
    return False


def main(store, prefix, target):
    store, target = os.path.abspath(store), os.fsencode(os.path.abspath(target))
    snapshot = read_snapshot(store, prefix)
    chunks, links, directories = Chunks(store), {}, []
    os.mkdir(target)

    def each(path, work):
        *above, name = parts = path.split(b"/")
        if not {b"", b".", b".."}.isdisjoint(parts) or b"\0" in path:
            return failed(path, "a path that no entry can have")
        try:
            parent = open_dir(target, above)
            try:
                work(parent, name)
            finally:
                os.close(parent)
        except Exception as error:
            failed(path, error)

    for path, owner, entry in entries(chunks, snapshot[7]):
        def work(parent, name):
            if make(chunks, target, parent, name, path, entry, links):
                return
            if entry[2] == 2:  # its metadata would be in the way of what goes into it
                directories.append((path, owner, entry))
            else:
                set_metadata(parent, name, owner, entry)
        each(path, work)
    for path, owner, entry in reversed(directories):
        each(path, lambda parent, name: set_metadata(parent, name, owner, entry))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
