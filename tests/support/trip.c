/* Runs a program and lets the n-th of some system calls fail, do less than requested, or never begin
 * because the program is killed.
 *
 *     trip COUNT_FILE BELOW CALL,CALL... N[+] ERRNO|short|kill PROGRAM [ARGUMENT]...
 *
 * Only calls on paths and open files below the directory BELOW count, over all threads
 * and children. With "+" all calls from the n-th on fail. Writes the number of such calls
 * to COUNT_FILE. For x86-64.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* Position of the file in the arguments of a call. */
enum where { FD, FD_4, PATH, AT, AT_1 };

static const struct call {
	const char *name;
	long number;
	enum where where;
} calls[] = {
#define CALL(name, where) { #name, SYS_##name, where }
	CALL(read, FD), CALL(pread64, FD), CALL(write, FD), CALL(pwrite64, FD),
	CALL(fsync, FD), CALL(fdatasync, FD), CALL(ftruncate, FD), CALL(fallocate, FD),
	CALL(getdents64, FD), CALL(fstat, FD), CALL(lseek, FD), CALL(flock, FD),
	CALL(fcntl, FD), CALL(fchmod, FD), CALL(fchown, FD), CALL(copy_file_range, FD),
	CALL(fsetxattr, FD), CALL(fgetxattr, FD), CALL(flistxattr, FD), CALL(mmap, FD_4),
	CALL(open, PATH), CALL(mkdir, PATH), CALL(rmdir, PATH), CALL(unlink, PATH),
	CALL(rename, PATH), CALL(link, PATH), CALL(chmod, PATH), CALL(stat, PATH),
	CALL(lstat, PATH), CALL(access, PATH), CALL(setxattr, PATH), CALL(lsetxattr, PATH),
	CALL(getxattr, PATH), CALL(lgetxattr, PATH), CALL(listxattr, PATH),
	CALL(llistxattr, PATH), CALL(readlink, PATH), CALL(openat, AT), CALL(openat2, AT),
	CALL(newfstatat, AT), CALL(statx, AT), CALL(mkdirat, AT), CALL(unlinkat, AT),
	CALL(renameat, AT), CALL(renameat2, AT), CALL(linkat, AT), CALL(mknodat, AT),
	CALL(fchmodat, AT), CALL(fchownat, AT), CALL(utimensat, AT), CALL(readlinkat, AT),
	CALL(faccessat2, AT), CALL(symlinkat, AT_1),
};
#define CALLS (sizeof calls / sizeof *calls)

static int is_chosen[CALLS];
static const char *below;
static unsigned long count, wanted;
static int is_for_good, is_short, is_kill, error, child;

static void die(const char *what)
{
	perror(what);
	exit(125);
}

static int link_of(char *out, const char *format, int pid, int fd)
{
	char path[64];
	snprintf(path, sizeof path, format, pid, fd);
	ssize_t len = readlink(path, out, 4095);
	out[len < 0 ? 0 : len] = 0;
	return len > 0;
}

/* Reads a string of another process. */
static int text_of(char *out, int pid, unsigned long address)
{
	size_t len = 0;
	while (len < 4095) {
		/* A page at a time: the next one may be unmapped. */
		size_t part = 4096 - (address + len) % 4096;
		if (part > 4095 - len)
			part = 4095 - len;
		struct iovec here = { out + len, part }, there = { (void *)(address + len), part };
		ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
		if (got <= 0)
			return 0;
		if (memchr(out + len, 0, got))
			return 1;
		len += got;
	}
	return 0;
}

static int is_below(int pid, enum where where, const struct user_regs_struct *regs)
{
	static char path[8192], name[4096];
	int dir = where == AT_1 ? (int)regs->rsi : (int)regs->rdi;
	unsigned long text = where == PATH ? regs->rdi : where == AT ? regs->rsi : regs->rdx;
	if (where == FD || where == FD_4) {
		if (!link_of(path, "/proc/%d/fd/%d", pid, where == FD ? dir : (int)regs->r8))
			return 0;
	} else {
		if (!text || !text_of(name, pid, text))
			name[0] = 0;
		int fd, used = 0;
		if (sscanf(name, "/proc/self/fd/%d%n", &fd, &used) == 1) {
			link_of(path, "/proc/%d/fd/%d", pid, fd);
			strcat(path, name + used);
		} else if (name[0] == '/') {
			strcpy(path, name);
		} else {
			int is_cwd = where == PATH || dir == -100;
			if (!link_of(path, is_cwd ? "/proc/%d/cwd" : "/proc/%d/fd/%d", pid, dir))
				return 0;
			strcat(path, "/");
			strcat(path, name);
		}
	}
	size_t len = strlen(below);
	return strncmp(path, below, len) == 0 && (path[len] == '/' || path[len] == 0);
}

static void meet(int pid)
{
	struct user_regs_struct regs;
	if (ptrace(PTRACE_GETREGS, pid, 0, &regs) < 0)
		return; /* killed meanwhile */
	for (size_t i = 0; i < CALLS; i++) {
		if (calls[i].number != (long)regs.orig_rax)
			continue;
		if (!is_below(pid, calls[i].where, &regs))
			return;
		count++;
		if (count < wanted || (count > wanted && !is_for_good))
			return;
		if (is_kill) {
			kill(child, SIGKILL);
			return;
		}
		if (is_short) {
			regs.rdx = regs.rdx > 2 ? regs.rdx / 3 : regs.rdx;
		} else {
			regs.orig_rax = -1;
			regs.rax = -error;
		}
		ptrace(PTRACE_SETREGS, pid, 0, &regs);
		return;
	}
}

static void filter(void)
{
	struct sock_filter code[2 * CALLS + 2], *next = code;
	*next++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < CALLS; i++) {
		if (!is_chosen[i])
			continue;
		*next++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].number, 0, 1);
		*next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
	}
	*next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { next - code, code };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("seccomp");
}

int main(int argc, char **argv)
{
	if (argc < 7)
		return 125;
	below = argv[2];
	for (char *name = strtok(argv[3], ","); name; name = strtok(NULL, ",")) {
		int is_known = 0;
		for (size_t i = 0; i < CALLS; i++)
			if (!strcmp(calls[i].name, name))
				is_chosen[i] = is_known = 1;
		if (!is_known) {
			fprintf(stderr, "trip: unknown call %s\n", name);
			return 125;
		}
	}
	wanted = strtoul(argv[4], NULL, 10);
	is_for_good = strchr(argv[4], '+') != NULL;
	is_short = !strcmp(argv[5], "short");
	is_kill = !strcmp(argv[5], "kill");
	error = atoi(argv[5]);

	child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		filter();
		execv(argv[6], argv + 6);
		die(argv[6]);
	}
	int status, code = 125;
	waitpid(child, &status, 0);
	long options = PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
		PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
	if (ptrace(PTRACE_SETOPTIONS, child, 0, options) < 0)
		die("ptrace");
	ptrace(PTRACE_CONT, child, 0, 0);
	int pid;
	while ((pid = waitpid(-1, &status, __WALL)) > 0) {
		if (WIFEXITED(status) || WIFSIGNALED(status)) {
			if (pid == child)
				code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
			continue;
		}
		int signal = WSTOPSIG(status), event = status >> 16;
		if (event == PTRACE_EVENT_SECCOMP)
			meet(pid);
		/* Each thread begins with a stop of its own. */
		if (event || signal == SIGSTOP || signal == SIGTRAP)
			signal = 0;
		ptrace(PTRACE_CONT, pid, 0, signal);
	}
	FILE *file = fopen(argv[1], "w");
	if (!file || fprintf(file, "%lu\n", count) < 0 || fclose(file))
		die(argv[1]);
	return code;
}
