/* What the preload library and the supervisor have in common: DIR.ioctl.sock, DIR.numbers, what the kernel's listings
 * lack. Promises: errno is set where a function fails, and kept where it does not; nothing is allocated, no lock taken.
 * Never: understands more of struct dm_ioctl than its size. Source: linux/dm-ioctl.h (UAPI), manual pages.
 */
#ifndef THINFS_DOOR_H
#define THINFS_DOOR_H

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#if __SIZEOF_POINTER__ != 8
#error "64-bit only: struct stat must be the kernel's"
#endif

enum { DOOR_CONTROL_MAJOR = 10, DOOR_CONTROL_MINOR = 236, DOOR_LISTING_BYTES = 65536, DOOR_HOLDERS = 0xF0 };

/* `sun_path` holds 108 bytes, so a longer DIR has no server either. */
static inline void door_address(const char *directory, struct sockaddr_un *address)
{
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	snprintf(address->sun_path, sizeof address->sun_path, "%s.ioctl.sock", directory);
}

/* A new connection: an open control node, or the way of one ioctl. Only to a server of our own user or of root. */
static inline int door_reach(const char *directory)
{
	struct sockaddr_un address;
	struct ucred who;
	socklen_t size = sizeof who;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), number;

	if (fd < 0)
		return -1;
	door_address(directory, &address);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
		number = errno == EACCES || errno == EPERM ? EACCES : ENODEV; /* as without device-mapper */
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) < 0 || (who.uid && who.uid != geteuid()))
		number = EPERM;
	else
		return fd;
	close(fd);
	errno = number;
	return -1;
}

/* Is it an open control node of this server: a connection to its socket, whoever opened it? */
static inline int door_is_control(const char *directory, int fd)
{
	struct sockaddr_un peer, expected;
	socklen_t size = sizeof peer;
	int saved = errno;

	memset(&peer, 0, sizeof peer);
	if (getpeername(fd, (struct sockaddr *)&peer, &size) < 0) {
		errno = saved;
		return 0;
	}
	door_address(directory, &expected);
	return peer.sun_family == AF_UNIX && !strncmp(peer.sun_path, expected.sun_path, sizeof peer.sun_path);
}

static inline int door_send(int fd, const void *data, size_t size)
{
	while (size) {
		ssize_t done = send(fd, data, size, MSG_NOSIGNAL);
		if (done < 0) {
			if (errno == EPIPE)
				errno = EIO;
			return -1;
		}
		data = (const char *)data + done;
		size -= done;
	}
	return 0;
}

/* A signal ends a DM_DEV_WAIT and a suspend that waits, in the kernel too; nothing else of device-mapper. */
static inline int door_receive(int fd, void *data, size_t size, int interruptible)
{
	while (size) {
		ssize_t done = recv(fd, data, size, 0);
		if (done < 0 && errno == EINTR && !interruptible)
			continue;
		if (done <= 0) {
			if (!done || errno == ECONNRESET)
				errno = EIO;
			return -1;
		}
		data = (char *)data + done;
		size -= done;
	}
	return 0;
}

/* A link of DIR.numbers; 0, or -1 where there is none. */
static inline int door_note(const char *directory, const char *name, char *text, size_t size)
{
	char path[4096];
	int saved = errno;
	ssize_t length;

	snprintf(path, sizeof path, "%s.numbers/%s", directory, name);
	length = readlink(path, text, size - 1);
	errno = saved;
	if (length < 0)
		return -1;
	text[length] = 0;
	return 0;
}

static inline unsigned int door_major(const char *directory)
{
	char text[32];
	return door_note(directory, "major", text, sizeof text) ? 0 : (unsigned int)atoi(text);
}

/* The node of a number of device-mapper. */
static inline int door_node(const char *directory, dev_t number, char *node, size_t size)
{
	char name[32];
	snprintf(name, sizeof name, "%u:%u", major(number), minor(number));
	return door_note(directory, name, node, size);
}

/* The number of device-mapper of a stat's result: of a loop device or an image file of the server; 0 for others. */
static inline dev_t door_number(const char *directory, mode_t mode, dev_t rdev, dev_t dev, ino_t inode)
{
	char name[64], text[64];
	unsigned int maj, min;
	struct stat mount;

	if (S_ISBLK(mode)) {
		if (major(rdev) != 7)
			return 0;
		snprintf(name, sizeof name, "7:%u", minor(rdev));
	} else if (S_ISREG(mode) && inode < 1 << 24) { /* the server counts them from 2 */
		snprintf(name, sizeof name, "inode:%llu", (unsigned long long)inode);
	} else
		return 0;
	if (door_note(directory, name, text, sizeof text) || sscanf(text, "%u:%u", &maj, &min) != 2)
		return 0;
	if (S_ISREG(mode)) {
		int saved = errno, failed = stat(directory, &mount);
		errno = saved;
		if (failed || mount.st_dev != dev)
			return 0;
	}
	return makedev(maj, min);
}

/* Does `path` name `name` below a directory for devices: /dev, or the DM_DEV_DIR of libdevmapper and LVM? */
static inline int door_names(const char *path, const char *root, const char *name)
{
	const char *dirs[] = { "/dev", getenv("DM_DEV_DIR") };

	for (unsigned int i = 0; path && i < 2; i++) {
		const char *at = path, *dir = dirs[i];
		size_t skip = strlen(root);

		if (!dir || dir[0] != '/')
			continue;
		if (skip && strncmp(at, root, skip)) /* the root directory of another process */
			continue;
		at += skip;
		for (; *dir; dir++) {
			if (*dir == '/') {
				if (*at != '/')
					break;
				at += strspn(at, "/");
				dir += strspn(dir, "/") - 1;
			} else if (*at++ != *dir)
				break;
		}
		if (*dir)
			continue;
		if (dir[-1] != '/') {
			if (*at != '/')
				continue;
			at += strspn(at, "/");
		}
		for (dir = name; *dir; dir++) {
			if (*dir == '/') {
				if (*at != '/')
					break;
				at += strspn(at, "/");
			} else if (*at++ != *dir)
				break;
		}
		if (!*dir && !*at)
			return 1;
	}
	return 0;
}

/* /dev/dm-N: the kernel's own node of a device, there without udev. */
static inline int door_dm_node(const char *path, const char *root, const char *directory, char *node, size_t size)
{
	unsigned int min;
	int end = 0;
	size_t skip = strlen(root);

	if (!path || (skip && strncmp(path, root, skip)))
		return -1;
	path += skip;
	if (strncmp(path, "/dev/dm-", 8) || sscanf(path, "/dev/dm-%u%n", &min, &end) != 1 || path[end])
		return -1;
	return door_node(directory, makedev(door_major(directory), min), node, size);
}

/* /proc/devices and /proc/misc, read from `fd`, with the line that a kernel with device-mapper has there. */
static inline int door_listing(const char *directory, int devices, int fd)
{
	char text[DOOR_LISTING_BYTES], line[64];
	size_t length = 0;
	ssize_t done;
	int made;

	while (length < sizeof text && (done = read(fd, text + length, sizeof text - length)) > 0)
		length += done;
	if ((made = memfd_create(devices ? "devices" : "misc", MFD_CLOEXEC)) < 0)
		return -1;
	snprintf(line, sizeof line, "%3u device-mapper\n", devices ? door_major(directory) : DOOR_CONTROL_MINOR);
	if (write(made, text, length) != (ssize_t)length || write(made, line, strlen(line)) < 0 || lseek(made, 0, SEEK_SET)) {
		close(made);
		return -1;
	}
	return made;
}

#endif
