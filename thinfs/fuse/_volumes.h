/* What a serving thread may do itself: words of the mapping trees, gates, and which inodes are served from them.
 *
 * One mutex guards all of it, and is held for look-ups only, never for I/O: whoever holds the GIL may wait for it.
 * A grant is valid until volumes_end: shutting a volume's gate waits for the grants that are out, and gives no new one. */
#ifndef THINFS_VOLUMES_H
#define THINFS_VOLUMES_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

enum { LARGEST_IO = 1 << 20, SMALLEST_BLOCK = 65536, MOST_RUNS = LARGEST_IO / SMALLEST_BLOCK + 1 };

enum operation { OP_READ, OP_WRITE, OP_FLUSH, NR_OPERATIONS };

enum verdict {
    NOT_ROUTED, /* no image of ours: pyfuse3's */
    FOR_PYTHON, /* a bio */
    GRANTED,    /* the serving thread's */
};

struct volume;

struct grant {
    struct volume *volume;
    enum operation operation;
    int fd;
    bool was_slow; /* the last one of the kind was: let another thread read meanwhile */
    unsigned nr_runs;
    uint64_t length; /* of a read: cut off at the end of the device */
    struct {
        uint64_t offset; /* in the data device */
        uint64_t length;
    } runs[MOST_RUNS];
};

enum verdict volumes_begin(uint64_t inode, enum operation operation, uint64_t offset, uint64_t length, struct grant *grant);
void volumes_end(const struct grant *grant, uint64_t nanoseconds);

extern PyTypeObject VolumeType;
extern PyMethodDef volumes_route, volumes_unroute, volumes_limit_table, volumes_table_pages;

#endif
