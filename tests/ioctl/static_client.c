/* A static program that speaks device-mapper's ioctls by itself, as Go's and Rust's do: preload does not reach it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static char buffer[16384] __attribute__((aligned(8)));

static int call(int fd, unsigned long number, const char *name, unsigned int flags)
{
	struct dm_ioctl *header = (struct dm_ioctl *)buffer;

	memset(header, 0, sizeof *header);
	header->version[0] = 4;
	header->data_size = sizeof buffer;
	header->data_start = sizeof *header;
	header->flags = flags;
	strcpy(header->name, name);
	return ioctl(fd, number, header) ? errno : 0;
}

static void load(int fd, const char *name, const char *target, unsigned long length)
{
	struct dm_ioctl *header = (struct dm_ioctl *)buffer;
	struct dm_target_spec *line = (struct dm_target_spec *)(header + 1);

	memset(buffer, 0, sizeof buffer);
	header->version[0] = 4;
	header->data_size = sizeof buffer;
	header->data_start = sizeof *header;
	header->target_count = 1;
	strcpy(header->name, name);
	line->length = length;
	line->next = sizeof *line + 8;
	strcpy(line->target_type, target);
	printf("load %s\n", strerror(ioctl(fd, DM_TABLE_LOAD, header) ? errno : 0));
}

static void alarmed(int signal) { (void)signal; }

int main(int argc, char **argv)
{
	struct dm_ioctl *header = (struct dm_ioctl *)buffer;
	const char *name = argv[1], *node = argc > 2 ? argv[2] : NULL;
	struct sigaction action = { .sa_handler = alarmed };
	struct stat st;
	char line[256];
	int fd = open("/dev/mapper/control", O_RDWR | O_CLOEXEC), pid;
	FILE *listing;

	if (fd < 0) {
		printf("open: %s\n", strerror(errno));
		return 1;
	}
	int found = !stat("/dev/mapper/control", &st);
	printf("control %d %u:%u\n", found && S_ISCHR(st.st_mode), major(st.st_rdev), minor(st.st_rdev));
	printf("version %s", strerror(call(fd, DM_VERSION, "", 0)));
	printf(" %u.%u\n", header->version[0], header->version[1]);
	printf("create %s\n", strerror(call(fd, DM_DEV_CREATE, name, 0)));
	printf("create %s\n", strerror(call(fd, DM_DEV_CREATE, name, 0)));
	load(fd, name, "zero", 8192);
	printf("resume %s\n", strerror(call(fd, DM_DEV_SUSPEND, name, 0)));
	dev_t number = makedev(major(header->dev), minor(header->dev));
	if (node)
		printf("node %d\n", !stat(node, &st) && S_ISBLK(st.st_mode) && st.st_rdev == number);
	printf("efault %d\n", ioctl(fd, DM_DEV_STATUS, (void *)8) < 0 && errno == EFAULT);
	for (int devices = 0; devices < 2; devices++) {
		int found = 0;
		listing = fopen(devices ? "/proc/devices" : "/proc/misc", "r");
		while (fgets(line, sizeof line, listing))
			found += strstr(line, " device-mapper\n") != NULL;
		printf("listed %d\n", found);
		fclose(listing);
	}
	sigaction(SIGALRM, &action, NULL); /* without SA_RESTART */
	alarm(1);
	printf("wait %s\n", strerror(call(fd, DM_DEV_WAIT, name, 0)));
	fflush(stdout);
	if (!(pid = fork())) { /* a child that waits while its parent does other things */
		printf("wait %s\n", strerror(call(fd, DM_DEV_WAIT, name, 0)));
		return 0;
	}
	usleep(200000);
	printf("remove %s\n", strerror(call(fd, DM_DEV_REMOVE, name, 0)));
	printf("status %s\n", strerror(call(fd, DM_DEV_STATUS, name, 0)));
	return 0;
}
