/* Seccomp user notification for programs that no library can be preloaded into: static ones.
 *
 * install() puts the calling process and all it starts under a filter; supervise() answers what the filter traps, in
 * another process, an ancestor of theirs, until nobody is left. Trapped is as little as the arguments can tell: ioctls
 * of type 0xfd, opens for reading and writing without O_CREAT and plain opens for reading (/dev/mapper/control and two
 * listings in /proc are among them), stats of paths, mknods of devices. Reads, writes and fstats are never trapped.
 * Promises: a call that is not ours goes on in the kernel as it was. A signal ends a DM_DEV_WAIT, as in the kernel.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_door.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#if defined(__x86_64__)
#define OUR_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OUR_ARCH AUDIT_ARCH_AARCH64
#else
#define OUR_ARCH 0
#endif

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif
#ifndef SECCOMP_ADDFD_FLAG_SEND
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif

enum { PATH_BYTES = 4096, MAX_REQUEST_BYTES = 16 << 20, LOOK_MS = 100 };

static char directory[sizeof ((struct sockaddr_un *)0)->sun_path - sizeof ".ioctl.sock" + 1];

/* --- the filter ------------------------------------------------------------------------------------------- */

struct program {
	struct sock_filter code[128];
	unsigned short length;
};

static void emit(struct program *p, unsigned short code, unsigned int k, unsigned char yes, unsigned char no)
{
	p->code[p->length++] = (struct sock_filter){ code, yes, no, k };
}

#define LOAD(p, at) emit(p, BPF_LD | BPF_W | BPF_ABS, at, 0, 0)
#define AND(p, mask) emit(p, BPF_ALU | BPF_AND | BPF_K, mask, 0, 0)
#define RETURN(p, value) emit(p, BPF_RET | BPF_K, value, 0, 0)
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + 8 * (n))

/* Notify if the value loaded is `value`, else go on. */
static void notify_if(struct program *p, unsigned int value)
{
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
	RETURN(p, SECCOMP_RET_USER_NOTIF);
}

/* What follows is for this call only: a jump over it, whose length `end` fills in. */
static unsigned short begin(struct program *p, unsigned int number)
{
	LOAD(p, offsetof(struct seccomp_data, nr));
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, number, 0, 0);
	return p->length - 1;
}

static void end(struct program *p, unsigned short jump)
{
	RETURN(p, SECCOMP_RET_ALLOW);
	p->code[jump].jf = p->length - jump - 1;
}

static void on_open(struct program *p, unsigned int number, int flags_argument)
{
	unsigned short jump = begin(p, number);
	LOAD(p, ARGUMENT(flags_argument));
	AND(p, ~(unsigned int)O_CLOEXEC);
	notify_if(p, O_RDONLY);
	LOAD(p, ARGUMENT(flags_argument));
	AND(p, O_ACCMODE | O_CREAT);
	notify_if(p, O_RDWR);
	end(p, jump);
}

static void on_masked(struct program *p, unsigned int number, int argument, unsigned int mask, unsigned int a, unsigned int b)
{
	unsigned short jump = begin(p, number);
	LOAD(p, ARGUMENT(argument));
	AND(p, mask);
	notify_if(p, a);
	notify_if(p, b);
	end(p, jump);
}

static void make_program(struct program *p)
{
	p->length = 0;
	LOAD(p, offsetof(struct seccomp_data, arch));
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, OUR_ARCH, 1, 0);
	RETURN(p, SECCOMP_RET_ALLOW);
	on_masked(p, __NR_ioctl, 1, 0xff00, DM_IOCTL << 8, DM_IOCTL << 8);
	on_open(p, __NR_openat, 2);
	on_masked(p, __NR_newfstatat, 3, AT_EMPTY_PATH, 0, 0);
	on_masked(p, __NR_statx, 2, AT_EMPTY_PATH, 0, 0);
	on_masked(p, __NR_mknodat, 2, S_IFMT, S_IFBLK, S_IFCHR);
#ifdef __NR_open
	on_open(p, __NR_open, 1);
	on_masked(p, __NR_stat, 0, 0, 0, 0);
	on_masked(p, __NR_lstat, 0, 0, 0, 0);
	on_masked(p, __NR_mknod, 1, S_IFMT, S_IFBLK, S_IFCHR);
#endif
	RETURN(p, SECCOMP_RET_ALLOW);
}

/* --- the other process ------------------------------------------------------------------------------------ */

struct call {
	int listener;
	struct seccomp_notif notif;
};

static int valid(const struct call *call)
{
	return !ioctl(call->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &call->notif.id);
}

static void answer(const struct call *call, int error, unsigned int flags)
{
	struct seccomp_notif_resp response = { .id = call->notif.id, .error = -error, .flags = flags };
	ioctl(call->listener, SECCOMP_IOCTL_NOTIF_SEND, &response); /* it may have gone */
}

static void pass_on(const struct call *call)
{
	answer(call, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
}

/* The descriptor is the answer of the call. */
static void give(const struct call *call, int fd, int cloexec)
{
	struct seccomp_notif_addfd add = {
		.id = call->notif.id, .flags = SECCOMP_ADDFD_FLAG_SEND, .srcfd = fd, .newfd_flags = cloexec ? O_CLOEXEC : 0,
	};
	if (ioctl(call->listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) < 0 && errno != ENOENT)
		answer(call, errno, 0);
	close(fd);
}

static ssize_t peek(pid_t pid, unsigned long long at, void *data, size_t size)
{
	struct iovec ours = { data, size }, theirs = { (void *)(uintptr_t)at, size };
	return process_vm_readv(pid, &ours, 1, &theirs, 1, 0);
}

static int poke(pid_t pid, unsigned long long at, const void *data, size_t size)
{
	struct iovec ours = { (void *)(uintptr_t)data, size }, theirs = { (void *)(uintptr_t)at, size };
	return process_vm_writev(pid, &ours, 1, &theirs, 1, 0) == (ssize_t)size ? 0 : -1;
}

/* A string of it, -1 when there is none; page by page, for the next one need not be there. */
static int peek_path(pid_t pid, unsigned long long at, char *path)
{
	size_t length = 0;

	while (at && length < PATH_BYTES - 1) {
		size_t size = 4096 - (at + length) % 4096;
		if (size > PATH_BYTES - 1 - length)
			size = PATH_BYTES - 1 - length;
		if (peek(pid, at + length, path + length, size) != (ssize_t)size)
			return -1;
		if (memchr(path + length, 0, size))
			return 0;
		length += size;
	}
	return -1;
}

/* --- files ------------------------------------------------------------------------------------------------ */

static int is_control(const char *path)
{
	return door_names(path, "", "mapper/control");
}

static void do_open(const struct call *call, unsigned long long path_at, int flags)
{
	char path[PATH_BYTES], node[PATH_BYTES];
	int fd = -1, devices;

	if (peek_path(call->notif.pid, path_at, path) || path[0] != '/') {
		pass_on(call);
		return;
	}
	if (is_control(path)) {
		if ((fd = door_reach(directory)) < 0)
			answer(call, errno, 0);
		else
			give(call, fd, flags & O_CLOEXEC);
		return;
	}
	devices = !strcmp(path, "/proc/devices");
	if ((devices || !strcmp(path, "/proc/misc")) && (flags & O_ACCMODE) == O_RDONLY) {
		int from = open(path, O_RDONLY | O_CLOEXEC);
		if (from >= 0) {
			fd = door_listing(directory, devices, from);
			close(from);
		}
	} else if (!door_dm_node(path, "", directory, node, sizeof node)) {
		if ((fd = open(node, flags | O_CLOEXEC)) < 0) {
			answer(call, errno, 0);
			return;
		}
	}
	if (fd < 0)
		pass_on(call);
	else
		give(call, fd, flags & O_CLOEXEC);
}

static int interesting(const char *path)
{
	const char *root = getenv("DM_DEV_DIR");
	return !strncmp(path, "/dev/", 5) || !strncmp(path, directory, strlen(directory)) ||
	       (root && *root && !strncmp(path, root, strlen(root)));
}

static void do_stat(const struct call *call, unsigned long long path_at, unsigned long long at, int flags, int mask, int is_statx)
{
	char path[PATH_BYTES], node[PATH_BYTES];
	union {
		struct stat st;
		struct statx stx;
	} out;
	int control;
	long result;
	dev_t number;

	if (peek_path(call->notif.pid, path_at, path) || path[0] != '/' || !interesting(path)) {
		pass_on(call);
		return;
	}
	control = is_control(path);
	memset(&out, 0, sizeof out);
	const char *real = door_dm_node(path, "", directory, node, sizeof node) ? path : node;
	if (is_statx) {
		result = syscall(__NR_statx, AT_FDCWD, real, flags, mask, &out.stx);
		number = result ? 0 : door_number(directory, out.stx.stx_mode, makedev(out.stx.stx_rdev_major, out.stx.stx_rdev_minor),
						  makedev(out.stx.stx_dev_major, out.stx.stx_dev_minor), out.stx.stx_ino);
	} else {
		result = syscall(__NR_newfstatat, AT_FDCWD, real, &out.st, flags);
		number = result ? 0 : door_number(directory, out.st.st_mode, out.st.st_rdev, out.st.st_dev, out.st.st_ino);
	}
	if (!control && !number && real == path) {
		pass_on(call);
		return;
	}
	if (result && !control) {
		answer(call, errno, 0);
		return;
	}
	if (control)
		number = makedev(DOOR_CONTROL_MAJOR, DOOR_CONTROL_MINOR);
	mode_t mode = control ? S_IFCHR | 0600 : S_IFBLK | ((is_statx ? out.stx.stx_mode : out.st.st_mode) & ~S_IFMT);
	if (is_statx) {
		out.stx.stx_mask |= STATX_TYPE | STATX_MODE;
		out.stx.stx_mode = mode;
		out.stx.stx_rdev_major = major(number);
		out.stx.stx_rdev_minor = minor(number);
	} else {
		out.st.st_mode = mode;
		out.st.st_rdev = number;
	}
	if (poke(call->notif.pid, at, &out, is_statx ? sizeof out.stx : sizeof out.st))
		answer(call, EFAULT, 0);
	else
		answer(call, 0, 0);
}

static void do_mknod(const struct call *call, unsigned long long path_at, mode_t mode, dev_t number)
{
	char path[PATH_BYTES], node[PATH_BYTES];

	if (peek_path(call->notif.pid, path_at, path) || path[0] != '/')
		pass_on(call);
	else if (is_control(path))
		answer(call, 0, 0);
	else if (!S_ISBLK(mode) || door_node(directory, number, node, sizeof node))
		pass_on(call);
	else
		answer(call, symlink(node, path) ? errno : 0, 0);
}

/* --- the ioctl, in a thread of its own -------------------------------------------------------------------- */

/* A line of /proc/PID/status as a number. */
static unsigned long long status_field(pid_t pid, const char *name, int base)
{
	char path[64], text[8192], *line;
	int fd;
	ssize_t length;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return 0;
	length = read(fd, text, sizeof text - 1);
	close(fd);
	text[length < 0 ? 0 : length] = 0;
	line = strstr(text, name);
	return line ? strtoull(line + strlen(name), NULL, base) : 0;
}

static int is_control_of(pid_t pid, int fd)
{
	pid_t group = (pid_t)status_field(pid, "\nTgid:", 10);
	int handle = group ? (int)syscall(SYS_pidfd_open, group, 0) : -1, copy, found;

	if (handle < 0)
		return 0;
	copy = (int)syscall(SYS_pidfd_getfd, handle, fd, 0);
	close(handle);
	if (copy < 0)
		return 0;
	found = door_is_control(directory, copy);
	close(copy);
	return found;
}

/* Has it a signal to see to? */
static int has_signal(pid_t pid)
{
	unsigned long long pending = status_field(pid, "\nSigPnd:", 16) | status_field(pid, "\nShdPnd:", 16);
	return (pending & ~status_field(pid, "\nSigBlk:", 16) & ~status_field(pid, "\nSigIgn:", 16)) != 0;
}

/* Until there is an answer: 0; a signal that may end it: EINTR; the process went: -1. */
static int await(const struct call *call, int fd, int interruptible)
{
	for (;;) {
		struct pollfd wait = { .fd = fd, .events = POLLIN };
		int ready = poll(&wait, 1, LOOK_MS);
		if (ready > 0)
			return 0;
		if (!valid(call))
			return -1;
		if (interruptible && has_signal(call->notif.pid))
			return EINTR;
	}
}

static void *do_ioctl(void *argument)
{
	struct call *call = argument;
	const struct seccomp_data *data = &call->notif.data;
	unsigned int head[2] = { data->args[1] & 0xffff, 0 }, back[2], sizes[4];
	unsigned int command = head[0] & 0xff;
	char *buffer = NULL;
	int fd = -1, error = 0;

	if (!is_control_of(call->notif.pid, (int)data->args[0])) {
		pass_on(call);
		goto done;
	}
	if (peek(call->notif.pid, data->args[2], sizes, sizeof sizes) != sizeof sizes) {
		error = EFAULT;
		goto answered;
	}
	head[1] = sizes[3] < offsetof(struct dm_ioctl, data) ? 3 * sizeof sizes[0] : sizes[3];
	if (head[1] > MAX_REQUEST_BYTES || !(buffer = malloc(head[1]))) {
		error = ENOMEM;
		goto answered;
	}
	if (peek(call->notif.pid, data->args[2], buffer, head[1]) != (ssize_t)head[1]) {
		error = EFAULT;
		goto answered;
	}
	if ((fd = door_reach(directory)) < 0 || door_send(fd, head, sizeof head) || door_send(fd, buffer, head[1])) {
		error = errno;
		goto answered;
	}
	error = await(call, fd, command == DM_DEV_WAIT_CMD || command == DM_DEV_SUSPEND_CMD);
	if (error < 0)
		goto done; /* it went: the end of the connection is the end of the ioctl */
	if (!error && (door_receive(fd, back, sizeof back, 0) || back[1] > head[1] || door_receive(fd, buffer, back[1], 0)))
		error = EIO;
	else if (!error && valid(call))
		error = poke(call->notif.pid, data->args[2], buffer, back[1]) ? EFAULT : (int)back[0];
answered:
	answer(call, error, 0);
done:
	if (fd >= 0)
		close(fd);
	free(buffer);
	free(call);
	return NULL;
}

static void start_ioctl(const struct call *call)
{
	struct call *own = malloc(sizeof *own);
	pthread_attr_t attributes;
	pthread_t thread;

	if (!own) {
		answer(call, ENOMEM, 0);
		return;
	}
	*own = *call;
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attributes, do_ioctl, own)) {
		answer(call, EAGAIN, 0);
		free(own);
	}
	pthread_attr_destroy(&attributes);
}

static void handle(const struct call *call)
{
	const unsigned long long *a = (const unsigned long long *)call->notif.data.args;

	switch (call->notif.data.nr) {
	case __NR_ioctl: start_ioctl(call); break;
	case __NR_openat: do_open(call, a[1], (int)a[2]); break;
	case __NR_newfstatat: do_stat(call, a[1], a[2], (int)a[3], 0, 0); break;
	case __NR_statx: do_stat(call, a[1], a[4], (int)a[2], (int)a[3], 1); break;
	case __NR_mknodat: do_mknod(call, a[1], (mode_t)a[2], (dev_t)a[3]); break;
#ifdef __NR_open
	case __NR_open: do_open(call, a[0], (int)a[1]); break;
	case __NR_stat: do_stat(call, a[0], a[1], 0, 0, 0); break;
	case __NR_lstat: do_stat(call, a[0], a[1], AT_SYMLINK_NOFOLLOW, 0, 0); break;
	case __NR_mknod: do_mknod(call, a[0], (mode_t)a[1], (dev_t)a[2]); break;
#endif
	default: pass_on(call);
	}
}

/* The wait status of `child` goes to `report` once; others that end here are reaped. */
static void reap(pid_t child, int *report, int options)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, options)) > 0)
		if (pid == child && *report >= 0) {
			if (write(*report, &status, sizeof status) < 0) {
				/* nobody waits any more */
			}
			close(*report);
			*report = -1;
		}
}

static int serve(int listener, pid_t child, int report)
{
	char room[4096] __attribute__((aligned(16))); /* a later kernel's struct may be longer */
	sigset_t ends;
	int signals;

	sigemptyset(&ends);
	sigaddset(&ends, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &ends, NULL) || (signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
		return -1;
	for (;;) {
		struct pollfd waits[2] = { { .fd = listener, .events = POLLIN }, { .fd = signals, .events = POLLIN } };
		struct signalfd_siginfo info;
		struct call call = { .listener = listener };

		reap(child, &report, WNOHANG);
		if (poll(waits, 2, -1) < 0 && errno != EINTR)
			return -1;
		while (read(signals, &info, sizeof info) > 0)
			;
		if (waits[0].revents & POLLIN) {
			memset(room, 0, sizeof room);
			if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, room) < 0) {
				if (errno == ENOENT || errno == EINTR)
					continue;
				return -1;
			}
			memcpy(&call.notif, room, sizeof call.notif);
			handle(&call);
		} else if (waits[0].revents) {
			reap(child, &report, 0);
			return 0; /* nobody is under the filter any more; who is still ending is waited for */
		}
	}
}

/* --- Python ----------------------------------------------------------------------------------------------- */

static PyObject *py_install(PyObject *self, PyObject *none)
{
	struct program program;
	struct sock_fprog fprog;
	unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
	long fd;

	(void)self;
	(void)none;
	if (!OUR_ARCH) {
		errno = ENOSYS;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	make_program(&program);
	fprog = (struct sock_fprog){ .len = program.length, .filter = program.code };
	if (geteuid() && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return PyErr_SetFromErrno(PyExc_OSError);
	fd = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &fprog);
	if (fd < 0 && errno == EINVAL) /* before 5.19 */
		fd = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog);
	if (fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return PyLong_FromLong(fd);
}

static PyObject *py_supervise(PyObject *self, PyObject *arguments)
{
	const char *mount;
	int listener, child, report, failed;

	(void)self;
	if (!PyArg_ParseTuple(arguments, "isii", &listener, &mount, &child, &report))
		return NULL;
	if (strlen(mount) >= sizeof directory) {
		errno = ENAMETOOLONG;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	strcpy(directory, mount);
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	Py_BEGIN_ALLOW_THREADS
	failed = serve(listener, child, report);
	Py_END_ALLOW_THREADS
	if (failed)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{ "install", py_install, METH_NOARGS, "Put this process under the filter; the descriptor of its notifications." },
	{ "supervise", py_supervise, METH_VARARGS,
	  "supervise(listener, mount_dir, child, report): answer until nobody is under the filter; the wait status of child "
	  "is written to report." },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, "_supervisor", NULL, 0, methods, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__supervisor(void)
{
	return PyModule_Create(&module);
}
