/* For LD_PRELOAD: programs that speak device-mapper's ioctls reach a thinfs server instead of a kernel.
 *
 * Promises: an open of /dev/mapper/control is a connection to the server of THINFS_MOUNT; each ioctl on it takes a
 * connection of its own (threads, forks and a DM_DEV_WAIT do not disturb each other), a wild pointer is EFAULT as from
 * the kernel. Block devices of the server answer stat with device-mapper's numbers, and such a number is a link to one.
 * Never: touches another ioctl or another file, keeps a table: a descriptor may be inherited, sent, duplicated.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "_door.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define EXPORT __attribute__((visibility("default")))
/* The function that this one stands in front of. */
#define NEXT(name) ({ static __typeof__(name) *next; if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name); next; })

static const char *directory(void)
{
	const char *dir = getenv("THINFS_MOUNT");
	return dir && *dir ? dir : "/run/thinfs";
}

/* --- the ioctl -------------------------------------------------------------------------------------------- */

static int ask(unsigned long request, struct dm_ioctl *argument)
{
	const unsigned int short_size = offsetof(struct dm_ioctl, data);
	unsigned int head[2] = { request & 0xffff, 0 }, answer[2], sizes[4];
	struct iovec ours = { sizes, sizeof sizes }, theirs = { argument, sizeof sizes };
	unsigned int command = request & 0xff;
	int fd, saved, interruptible = command == DM_DEV_WAIT_CMD || command == DM_DEV_SUSPEND_CMD;

	if (process_vm_readv(getpid(), &ours, 1, &theirs, 1, 0) != sizeof sizes) {
		if (errno == EPERM || errno == ENOSYS) /* not allowed here: believe the pointer */
			memcpy(sizes, argument, sizeof sizes);
		else {
			errno = EFAULT;
			return -1;
		}
	}
	head[1] = sizes[3] < short_size ? sizeof argument->version : sizes[3];
	if ((fd = door_reach(directory())) < 0)
		return -1;
	if (door_send(fd, head, sizeof head) || door_send(fd, argument, head[1]) || door_receive(fd, answer, sizeof answer, interruptible))
		goto failed;
	if (answer[1] > head[1]) {
		errno = EIO;
		goto failed;
	}
	if (door_receive(fd, argument, answer[1], 0))
		goto failed;
	close(fd);
	if (answer[0]) {
		errno = answer[0];
		return -1;
	}
	return 0;
failed:
	saved = errno;
	close(fd);
	errno = saved;
	return -1;
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	void *argument;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (_IOC_TYPE(request) == DM_IOCTL && door_is_control(directory(), fd))
		return ask(request, argument);
	return NEXT(ioctl)(fd, request, argument);
}

/* --- opening ---------------------------------------------------------------------------------------------- */

static int is_control(const char *path)
{
	return door_names(path, "", "mapper/control");
}

static const char *real_node(const char *path, char *node, size_t size)
{
	return door_dm_node(path, "", directory(), node, size) ? path : node;
}

static int listing(const char *path)
{
	int devices = path && !strcmp(path, "/proc/devices"), from, made;

	if (!devices && (!path || strcmp(path, "/proc/misc")))
		return -1;
	if ((from = NEXT(open)(path, O_RDONLY | O_CLOEXEC)) < 0)
		return -1;
	made = door_listing(directory(), devices, from);
	close(from);
	return made;
}

static int special(const char *path, int flags, int *fd)
{
	if (is_control(path)) {
		if ((*fd = door_reach(directory())) >= 0 && !(flags & O_CLOEXEC))
			fcntl(*fd, F_SETFD, 0);
		return 1;
	}
	return (flags & O_ACCMODE) == O_RDONLY && (*fd = listing(path)) >= 0;
}

#define MODE ({ va_list list; mode_t mode = 0; if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
	va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); } mode; })
#define OPEN(name) EXPORT int name(const char *path, int flags, ...) \
	{ mode_t mode = MODE; char node[4096]; int fd; \
	  return special(path, flags, &fd) ? fd : NEXT(name)(real_node(path, node, sizeof node), flags, mode); }
#define OPENAT(name) EXPORT int name(int at, const char *path, int flags, ...) \
	{ mode_t mode = MODE; char node[4096]; int fd; \
	  return special(path, flags, &fd) ? fd : NEXT(name)(at, real_node(path, node, sizeof node), flags, mode); }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* what _FORTIFY_SOURCE makes of an open without a mode */
#define OPEN_2(name) int name(const char *path, int flags); EXPORT int name(const char *path, int flags) \
	{ char node[4096]; int fd; \
	  return special(path, flags, &fd) ? fd : NEXT(name)(real_node(path, node, sizeof node), flags); }
#define OPENAT_2(name) int name(int at, const char *path, int flags); EXPORT int name(int at, const char *path, int flags) \
	{ char node[4096]; int fd; \
	  return special(path, flags, &fd) ? fd : NEXT(name)(at, real_node(path, node, sizeof node), flags); }
OPEN_2(__open_2)
OPEN_2(__open64_2)
OPENAT_2(__openat_2)
OPENAT_2(__openat64_2)

#define FOPEN(name) EXPORT FILE *name(const char *path, const char *mode) \
	{ int fd = mode && mode[0] == 'r' && !strchr(mode, '+') ? listing(path) : -1; \
	  return fd >= 0 ? fdopen(fd, "r") : NEXT(name)(path, mode); }
FOPEN(fopen)
FOPEN(fopen64)

/* --- stat: struct stat is the system call's, and struct stat64 the same ------------------------------------- */

static int stat_at(int at, const char *path, struct stat *st, int flags)
{
	char node[4096];
	long result = syscall(SYS_newfstatat, at, real_node(path, node, sizeof node), st, flags);
	dev_t number;

	if (is_control(path) || (!result && S_ISSOCK(st->st_mode) && flags & AT_EMPTY_PATH && door_is_control(directory(), at))) {
		if (result)
			memset(st, 0, sizeof *st);
		st->st_mode = S_IFCHR | 0600;
		st->st_rdev = makedev(DOOR_CONTROL_MAJOR, DOOR_CONTROL_MINOR);
		return 0;
	}
	if (!result && (number = door_number(directory(), st->st_mode, st->st_rdev, st->st_dev, st->st_ino))) {
		st->st_mode = (st->st_mode & ~S_IFMT) | S_IFBLK;
		st->st_rdev = number;
	}
	return result;
}

#define STAT(name, kind, path_flags) \
	EXPORT int name(const char *path, struct kind *st) { return stat_at(AT_FDCWD, path, (struct stat *)st, path_flags); }
STAT(stat, stat, 0)
STAT(stat64, stat64, 0)
STAT(lstat, stat, AT_SYMLINK_NOFOLLOW)
STAT(lstat64, stat64, AT_SYMLINK_NOFOLLOW)
EXPORT int fstat(int fd, struct stat *st) { return stat_at(fd, "", st, AT_EMPTY_PATH); }
EXPORT int fstat64(int fd, struct stat64 *st) { return stat_at(fd, "", (struct stat *)st, AT_EMPTY_PATH); }
EXPORT int fstatat(int at, const char *path, struct stat *st, int flags) { return stat_at(at, path, st, flags); }
EXPORT int fstatat64(int at, const char *path, struct stat64 *st, int flags)
{
	return stat_at(at, path, (struct stat *)st, flags);
}
/* what binaries of before glibc 2.33 call */
#define XSTAT(name, kind, path_flags) int name(int version, const char *path, struct kind *st); \
	EXPORT int name(int version, const char *path, struct kind *st) \
	{ (void)version; return stat_at(AT_FDCWD, path, (struct stat *)st, path_flags); }
XSTAT(__xstat, stat, 0)
XSTAT(__xstat64, stat64, 0)
XSTAT(__lxstat, stat, AT_SYMLINK_NOFOLLOW)
XSTAT(__lxstat64, stat64, AT_SYMLINK_NOFOLLOW)
#define FXSTAT(name, kind) int name(int version, int fd, struct kind *st); \
	EXPORT int name(int version, int fd, struct kind *st) \
	{ (void)version; return stat_at(fd, "", (struct stat *)st, AT_EMPTY_PATH); }
FXSTAT(__fxstat, stat)
FXSTAT(__fxstat64, stat64)

EXPORT int statx(int at, const char *restrict path, int flags, unsigned int mask, struct statx *restrict st)
{
	char node[4096];
	long result = syscall(SYS_statx, at, real_node(path, node, sizeof node), flags, mask, st);
	dev_t number;

	if (is_control(path)) {
		if (result)
			memset(st, 0, sizeof *st);
		st->stx_mask |= STATX_TYPE | STATX_MODE;
		st->stx_mode = S_IFCHR | 0600;
		st->stx_rdev_major = DOOR_CONTROL_MAJOR;
		st->stx_rdev_minor = DOOR_CONTROL_MINOR;
		return 0;
	}
	if (!result && (number = door_number(directory(), st->stx_mode, makedev(st->stx_rdev_major, st->stx_rdev_minor),
					     makedev(st->stx_dev_major, st->stx_dev_minor), st->stx_ino))) {
		st->stx_mode = (st->stx_mode & ~S_IFMT) | S_IFBLK;
		st->stx_rdev_major = major(number);
		st->stx_rdev_minor = minor(number);
	}
	return result;
}

#define ACCESS(name, parameters, ...) EXPORT int name parameters \
	{ char node[4096]; return is_control(path) ? 0 : NEXT(name)(__VA_ARGS__); }
ACCESS(access, (const char *path, int mode), real_node(path, node, sizeof node), mode)
ACCESS(euidaccess, (const char *path, int mode), real_node(path, node, sizeof node), mode)
ACCESS(eaccess, (const char *path, int mode), real_node(path, node, sizeof node), mode)
ACCESS(faccessat, (int at, const char *path, int mode, int flags), at, real_node(path, node, sizeof node), mode, flags)

/* --- /sys/block/dm-N/holders: the server lists the devices that use device N, in a directory of its own -------- */

static int holders(const char *path, char *directory_path, size_t size)
{
	unsigned int head[2] = { DM_IOCTL << 8 | DOOR_HOLDERS, sizeof(unsigned int) }, answer[2], min;
	int end = 0, fd, failed;

	if (!path || sscanf(path, "/sys/block/dm-%u/holders%n", &min, &end) != 1 || !end || path[end])
		return 0;
	if ((fd = door_reach(directory())) < 0)
		return 0;
	failed = door_send(fd, head, sizeof head) || door_send(fd, &min, sizeof min) ||
		 door_receive(fd, answer, sizeof answer, 0) || answer[0] || answer[1] >= size ||
		 door_receive(fd, directory_path, answer[1], 0);
	close(fd);
	if (failed)
		return 0;
	directory_path[answer[1]] = 0;
	return 1;
}

EXPORT DIR *opendir(const char *path)
{
	char found[4096];
	return NEXT(opendir)(holders(path, found, sizeof found) ? found : path);
}

/* --- nodes: one with a number of ours would lead nowhere, a link to its block device does -------------------- */

static int make(int at, const char *path, mode_t mode, dev_t number, int *result)
{
	char node[4096];

	if (is_control(path)) {
		*result = 0;
		return 1;
	}
	if (!S_ISBLK(mode) || door_node(directory(), number, node, sizeof node))
		return 0;
	*result = symlinkat(node, at, path);
	return 1;
}

EXPORT int mknod(const char *path, mode_t mode, dev_t number)
{
	int result;
	return make(AT_FDCWD, path, mode, number, &result) ? result : NEXT(mknod)(path, mode, number);
}

EXPORT int mknodat(int at, const char *path, mode_t mode, dev_t number)
{
	int result;
	return make(at, path, mode, number, &result) ? result : NEXT(mknodat)(at, path, mode, number);
}

int __xmknod(int version, const char *path, mode_t mode, dev_t *number);
EXPORT int __xmknod(int version, const char *path, mode_t mode, dev_t *number)
{
	(void)version;
	return mknod(path, mode, *number);
}

/* libdevmapper gives a node it made to root; an ordinary user's node is a link to a file of his own, which stays his. */
static int is_ours(const char *path)
{
	struct stat st;
	int saved = errno, found;

	found = !syscall(SYS_newfstatat, AT_FDCWD, path, &st, 0) &&
		door_number(directory(), st.st_mode, st.st_rdev, st.st_dev, st.st_ino);
	errno = saved;
	return found;
}

EXPORT int chown(const char *path, uid_t owner, gid_t group)
{
	int result = NEXT(chown)(path, owner, group);
	return result && errno == EPERM && geteuid() && is_ours(path) ? 0 : result;
}
