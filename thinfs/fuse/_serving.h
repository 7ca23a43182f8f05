/* The serving threads' side that the rest of the extension uses. */
#ifndef THINFS_SERVING_H
#define THINFS_SERVING_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stddef.h>

enum { LARGEST_REQUEST = (1 << 20) + 8192 }; /* max_write and what comes before it */

/* Before the session: pyfuse3 is to take our descriptor for its own. */
bool serving_takes_session(void);
int serving_wake_fd(void);
/* What pyfuse3 receives next: its size, 0 at the session's end, -EINTR for nothing; `*mem` is malloc's, the caller's. */
int serving_receive(void **mem);

extern PyTypeObject RequestType;
extern PyMethodDef serving_prepare, serving_start, serving_stop, serving_take, serving_counts, serving_failure;

#endif
