/*
 * FUSE's ceiling for the bench: a directory with one file, "volume", whose reads and writes go straight to a
 * backing file. libfuse's low-level API, one thread, as thinfs serves too. Attributes are not cached, writes
 * are written through, fsync is fdatasync: the same promises as thinfs makes. Usage: passthrough BACKING MOUNTPOINT
 */
#define FUSE_USE_VERSION 34
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { VOLUME_INODE = 2, BUFFER_BYTES = 1 << 20 };

static const char NAME[] = "volume";
static int backing;
static char *buffer;

static void attributes(fuse_ino_t inode, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = inode;
	st->st_uid = getuid();
	st->st_gid = getgid();
	if (inode == FUSE_ROOT_ID) {
		st->st_mode = S_IFDIR | 0700;
		st->st_nlink = 2;
	} else {
		struct stat of_backing;
		fstat(backing, &of_backing);
		st->st_mode = S_IFREG | 0600;
		st->st_nlink = 1;
		st->st_size = of_backing.st_size;
		st->st_blocks = of_backing.st_blocks;
		st->st_blksize = 65536;
	}
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	if (parent != FUSE_ROOT_ID || strcmp(name, NAME) != 0) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	struct fuse_entry_param entry = {.ino = VOLUME_INODE};
	attributes(VOLUME_INODE, &entry.attr);
	fuse_reply_entry(req, &entry);
}

static void do_getattr(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *fi)
{
	struct stat st;
	(void)fi;
	attributes(inode, &st);
	fuse_reply_attr(req, &st, 0);
}

static void do_setattr(fuse_req_t req, fuse_ino_t inode, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	(void)attr;
	(void)to_set;
	do_getattr(req, inode, fi);
}

static void do_open(fuse_req_t req, fuse_ino_t inode, struct fuse_file_info *fi)
{
	if (inode != VOLUME_INODE)
		fuse_reply_err(req, EISDIR);
	else
		fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *fi)
{
	(void)inode;
	(void)fi;
	ssize_t got = pread(backing, buffer, size < BUFFER_BYTES ? size : BUFFER_BYTES, offset);
	if (got < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_buf(req, buffer, got);
}

static void do_write(fuse_req_t req, fuse_ino_t inode, const char *data, size_t size, off_t offset,
		     struct fuse_file_info *fi)
{
	(void)inode;
	(void)fi;
	ssize_t done = pwrite(backing, data, size, offset);
	if (done < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_write(req, done);
}

static void do_fsync(fuse_req_t req, fuse_ino_t inode, int datasync, struct fuse_file_info *fi)
{
	(void)inode;
	(void)datasync;
	(void)fi;
	fuse_reply_err(req, fdatasync(backing) < 0 ? errno : 0);
}

static void do_statfs(fuse_req_t req, fuse_ino_t inode)
{
	struct statvfs st = {.f_bsize = 65536, .f_frsize = 65536, .f_namemax = 127};
	(void)inode;
	fuse_reply_statfs(req, &st);
}

static const struct fuse_lowlevel_ops OPERATIONS = {
	.lookup = do_lookup, .getattr = do_getattr, .setattr = do_setattr, .open = do_open, .read = do_read,
	.write = do_write, .fsync = do_fsync, .statfs = do_statfs,
};

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: passthrough BACKING MOUNTPOINT\n");
		return 2;
	}
	backing = open(argv[1], O_RDWR | O_CLOEXEC);
	buffer = malloc(BUFFER_BYTES);
	if (backing < 0 || buffer == NULL) {
		perror(argv[1]);
		return 1;
	}
	char *arguments[] = {argv[0], "-odefault_permissions,fsname=passthrough", NULL};
	struct fuse_args args = FUSE_ARGS_INIT(2, arguments);
	struct fuse_session *session = fuse_session_new(&args, &OPERATIONS, sizeof OPERATIONS, NULL);
	if (session == NULL || fuse_set_signal_handlers(session) != 0 || fuse_session_mount(session, argv[2]) != 0)
		return 1;
	int result = fuse_session_loop(session);
	fuse_session_unmount(session);
	fuse_remove_signal_handlers(session);
	fuse_session_destroy(session);
	return result != 0;
}
