/* _fuseshim: the FUSE callbacks and connection settings that image files need and pyfuse3 does not offer.
 *
 * Imported with RTLD_GLOBAL before pyfuse3 (thinfs/fuse/binding.py), it defines fuse_session_new, _fd and _receive_buf, so
 * the dynamic linker binds pyfuse3's references to these: they complete the operations table, or give pyfuse3 what the
 * serving threads (_serving.c) leave to it, and call libfuse's own. All must be in one object: of two, each linked with
 * libfuse, the second would be past the first.
 *   fallocate, lseek   handed to Python callables, only where pyfuse3 left the entry empty
 *   init               runs pyfuse3's, then sets what connection_settings() below says
 * Never: overrides a callback that pyfuse3 has, answers a request twice, keeps a request after its answer.
 * Reference: the FUSE front end notes, "pyfuse3 has no FALLOCATE and no LSEEK handler". */
#define FUSE_USE_VERSION 38 /* lseek came with 3.8 */
#include "_serving.h"
#include "_volumes.h"
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>

#define REQUEST "thinfs fuse request"

static PyObject *fallocate_handler, *lseek_handler;
static void (*pyfuse3_init)(void *, struct fuse_conn_info *);
static struct fuse_session *session;
static long nr_sessions;
static unsigned max_background;
static bool wake_fd_taken, receive_taken; /* by pyfuse3, in this session */

/* ---- requests on their way to Python: a capsule, renamed to NULL by its answer ------------------------------ */

static void hand_over(PyObject *handler, fuse_req_t req, const char *format, ...)
{
    PyGILState_STATE gil = PyGILState_Ensure(); /* pyfuse3 holds it already; nothing says it always will */
    PyObject *request = PyCapsule_New(req, REQUEST, NULL), *arguments = NULL, *result = NULL;
    if (request) {
        va_list values;
        va_start(values, format);
        PyObject *rest = Py_VaBuildValue(format, values);
        va_end(values);
        PyObject *first = rest ? PyTuple_Pack(1, request) : NULL;
        arguments = first ? PySequence_Concat(first, rest) : NULL;
        Py_XDECREF(first);
        Py_XDECREF(rest);
    }
    if (arguments)
        result = PyObject_CallObject(handler, arguments);
    if (!result) {
        PyErr_WriteUnraisable(handler);
        if (!request || PyCapsule_IsValid(request, REQUEST)) {
            fuse_reply_err(req, EIO);
            if (request)
                PyCapsule_SetName(request, NULL);
        }
    }
    Py_XDECREF(result);
    Py_XDECREF(arguments);
    Py_XDECREF(request);
    PyGILState_Release(gil);
}

static void on_fallocate(fuse_req_t req, fuse_ino_t inode, int mode, off_t offset, off_t length, struct fuse_file_info *fi)
{
    (void)fi;
    hand_over(fallocate_handler, req, "(KiLL)", (unsigned long long)inode, mode, (long long)offset, (long long)length);
}

static void on_lseek(fuse_req_t req, fuse_ino_t inode, off_t offset, int whence, struct fuse_file_info *fi)
{
    (void)fi;
    hand_over(lseek_handler, req, "(KLi)", (unsigned long long)inode, (long long)offset, whence);
}

static fuse_req_t take(PyObject *capsule)
{
    fuse_req_t req = PyCapsule_GetPointer(capsule, REQUEST); /* ValueError once answered */
    if (req && PyCapsule_SetName(capsule, NULL) != 0)
        return NULL;
    return req;
}

/* ---- the connection ------------------------------------------------------------------------------------------- */

static void connection_settings(struct fuse_conn_info *conn)
{
    /* The size is fixed: with O_TRUNC inside open, the kernel would take the size for zero without asking. */
    conn->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
    /* Only thinfs changes a volume, through this connection or telling it: no getattr before each buffered read,
     * and st_mtime, which moves with every write, does not throw the page cache away. */
    if (conn->capable & FUSE_CAP_EXPLICIT_INVAL_DATA) {
        conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
        conn->want |= FUSE_CAP_EXPLICIT_INVAL_DATA;
    }
    /* The kernel's default of 12 is for the whole mount: as many asynchronous writes waiting for space would
     * stop the readahead and the asynchronous I/O of every other volume. */
    if (max_background)
        conn->max_background = max_background;
    if (conn->max_write > LARGEST_IO) /* what the serving threads' buffers hold */
        conn->max_write = LARGEST_IO;
}

static void on_init(void *user_data, struct fuse_conn_info *conn)
{
    if (pyfuse3_init)
        pyfuse3_init(user_data, conn);
    connection_settings(conn);
}

static const struct fuse_lowlevel_ops *completed(const struct fuse_lowlevel_ops *given, size_t size)
{
    static struct fuse_lowlevel_ops table; /* libfuse copies it */
    memset(&table, 0, sizeof table);
    memcpy(&table, given, size < sizeof table ? size : sizeof table);
    if (fallocate_handler && !table.fallocate)
        table.fallocate = on_fallocate;
    if (lseek_handler && !table.lseek)
        table.lseek = on_lseek;
    pyfuse3_init = table.init;
    table.init = on_init;
    return &table;
}

static void *libfuse(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);
    if (!function)
        fprintf(stderr, "thinfs: libfuse has no %s: %s\n", name, dlerror());
    return function;
}

static struct fuse_session *opened(struct fuse_session *se)
{
    if (se) {
        session = se;
        wake_fd_taken = receive_taken = false;
        nr_sessions++;
    }
    return se;
}

/* libfuse's own names, whatever its header makes of them (macro or inline function since 3.17). */
struct fuse_session *shim_session_new(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *)
    __asm__("fuse_session_new");
struct fuse_session *shim_session_new_versioned(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
                                                const void *, void *) __asm__("fuse_session_new_versioned");

__attribute__((visibility("default"))) struct fuse_session *
shim_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t size, void *user_data)
{
    struct fuse_session *(*next)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *) =
        libfuse("fuse_session_new");
    return next ? opened(next(args, completed(ops, size), sizeof(struct fuse_lowlevel_ops), user_data)) : NULL;
}

__attribute__((visibility("default"))) struct fuse_session *
shim_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t size,
                           const void *version, void *user_data)
{
    struct fuse_session *(*next)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, const void *, void *) =
        libfuse("fuse_session_new_versioned");
    return next ? opened(next(args, completed(ops, size), sizeof(struct fuse_lowlevel_ops), version, user_data)) : NULL;
}

int shim_session_fd(struct fuse_session *) __asm__("fuse_session_fd");
int shim_session_receive_buf(struct fuse_session *, struct fuse_buf *) __asm__("fuse_session_receive_buf");

static int real_fd(struct fuse_session *se)
{
    int (*next)(struct fuse_session *) = libfuse("fuse_session_fd");
    return next ? next(se) : -1;
}

__attribute__((visibility("default"))) int shim_session_fd(struct fuse_session *se)
{
    if (!serving_takes_session())
        return real_fd(se);
    wake_fd_taken = true;
    return serving_wake_fd();
}

__attribute__((visibility("default"))) int shim_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
    int (*next)(struct fuse_session *, struct fuse_buf *) = libfuse("fuse_session_receive_buf");
    if (!serving_takes_session())
        return next ? next(se, buf) : -ENOSYS;
    receive_taken = true;
    void *mem = NULL;
    int size = serving_receive(&mem);
    if (mem) {
        free(buf->mem);
        buf->mem = mem;
        buf->size = size;
        buf->flags = 0;
        buf->fd = -1;
        buf->pos = 0;
    } else if (size == 0 && se)
        fuse_session_exit(se);
    return size;
}

/* ---- what Python sees ----------------------------------------------------------------------------------------- */

static PyObject *py_configure(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"fallocate", "lseek", "max_background", NULL};
    PyObject *fallocate, *lseek;
    unsigned background;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOI", names, &fallocate, &lseek, &background))
        return NULL;
    Py_INCREF(fallocate);
    Py_XSETREF(fallocate_handler, fallocate);
    Py_INCREF(lseek);
    Py_XSETREF(lseek_handler, lseek);
    max_background = background;
    Py_RETURN_NONE;
}

static PyObject *replied(int result)
{
    /* ENOENT: the request was aborted meanwhile; any other failure means that the connection is gone. */
    if (result == 0 || result == -ENOENT)
        Py_RETURN_NONE;
    errno = -result;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *py_reply_err(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    int error;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &error))
        return NULL;
    fuse_req_t req = take(capsule);
    return req ? replied(fuse_reply_err(req, error)) : NULL;
}

static PyObject *py_reply_lseek(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    long long offset;
    (void)self;
    if (!PyArg_ParseTuple(args, "OL", &capsule, &offset))
        return NULL;
    fuse_req_t req = take(capsule);
    return req ? replied(fuse_reply_lseek(req, offset)) : NULL;
}

static PyObject *py_nr_sessions(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    return PyLong_FromLong(nr_sessions);
}

static PyObject *py_session_fd(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    return PyLong_FromLong(session ? real_fd(session) : -1);
}

static PyObject *py_is_taken(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    return PyBool_FromLong(wake_fd_taken);
}

static PyMethodDef methods[] = {
    {"configure", (PyCFunction)(void (*)(void))py_configure, METH_VARARGS | METH_KEYWORDS,
     "configure(*, fallocate, lseek, max_background): for the sessions opened from now on."},
    {"reply_err", py_reply_err, METH_VARARGS, "reply_err(request, errno): 0 is success. ValueError if answered before."},
    {"reply_lseek", py_reply_lseek, METH_VARARGS, "reply_lseek(request, offset)"},
    {"nr_sessions", py_nr_sessions, METH_NOARGS, "Sessions that were opened through this module."},
    {"session_fd", py_session_fd, METH_NOARGS, "The descriptor of the last session; only while it is open."},
    {"is_taken", py_is_taken, METH_NOARGS, "Whether the last session's pyfuse3 has taken the prepared descriptor for its own."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_fuseshim", "FALLOCATE, LSEEK, connection settings and serving threads for pyfuse3.", -1,
    methods, NULL, NULL, NULL, NULL,
};

static int add_all(PyObject *made)
{
    static PyMethodDef *const functions[] = {
        &serving_prepare, &serving_start, &serving_stop, &serving_take, &serving_counts, &serving_failure,
        &volumes_route, &volumes_unroute, &volumes_limit_table, &volumes_table_pages,
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        PyObject *function = PyCFunction_New(functions[i], NULL);
        int failed = !function || PyModule_AddObjectRef(made, functions[i]->ml_name, function) < 0;
        Py_XDECREF(function);
        if (failed)
            return -1;
    }
    return PyModule_AddType(made, &VolumeType) < 0 || PyModule_AddType(made, &RequestType) < 0 ||
                   PyModule_AddIntConstant(made, "READ", OP_READ) < 0 ||
                   PyModule_AddIntConstant(made, "WRITE", OP_WRITE) < 0 ||
                   PyModule_AddIntConstant(made, "FLUSH", OP_FLUSH) < 0
               ? -1
               : 0;
}

PyMODINIT_FUNC PyInit__fuseshim(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && add_all(made) < 0)
        Py_CLEAR(made);
    return made;
}
