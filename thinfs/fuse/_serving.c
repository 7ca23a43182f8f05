/* Serving threads: they read requests from /dev/fuse, do what a volume grants, and hand everything else over.
 *
 * One thread reads at a time, so requests are handed over in the kernel's order; whoever expects to be long at one (the
 * volume's last of the kind was) first lets another thread read. Reads, writes and flushes of a routed inode go to take()
 * as a Request, which is answered when Python has done it, now or later; the rest to pyfuse3, by an eventfd that it takes
 * for its session's descriptor. Never: takes the GIL, waits for Python, answers twice. A thread that cannot go on ends the
 * session, and failure() says why. INTERRUPT is ignored, as the protocol allows: nothing here can be taken back. */
#include "_serving.h"
#include "_volumes.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 8, MOST_SPARES = 8, WORTH_GIVING_AWAY = 65536, TAKEN_AT_ONCE = 64 };
#define WAKE_SIGNAL (SIGRTMIN + 6)

struct item {
    struct item *next;
    size_t size;
    char *data; /* malloc's: LARGEST_REQUEST bytes, or as many as it has */
    bool large;
};

struct queue {
    struct item *head, **tail;
    int fd; /* an eventfd, readable while there is something; -1 outside of a session */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* all that follows, but for fuse_fd inside a thread's life */
static pthread_cond_t may_read = PTHREAD_COND_INITIALIZER;
static struct queue for_python = {NULL, &for_python.head, -1}, for_pyfuse3 = {NULL, &for_pyfuse3.head, -1};
static bool prepared, over; /* over: nothing more comes from /dev/fuse */
static bool stopping;
static int fuse_fd = -1; /* our own duplicate */
static unsigned long session_nr;
static pthread_t threads[MOST_THREADS];
static bool ended[MOST_THREADS];
static unsigned nr_threads, nr_waiting;
static bool somebody_reads;
static char *spares[MOST_SPARES];
static unsigned nr_spares;
static unsigned long nr_served, nr_for_python, nr_for_pyfuse3;
static char failure[256];

/* ---- the end --------------------------------------------------------------------------------------------------------- */

static void make_readable(int fd)
{
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void end_session(const char *format, ...) /* locked */
{
    if (format && !failure[0]) {
        va_list values;
        va_start(values, format);
        vsnprintf(failure, sizeof failure, format, values);
        va_end(values);
    }
    if (!over && for_pyfuse3.fd >= 0)
        make_readable(for_pyfuse3.fd); /* and it stays so */
    over = true;
    pthread_cond_broadcast(&may_read);
}

/* ---- handing over ---------------------------------------------------------------------------------------------------- */

static char *new_buffer(void) /* locked */
{
    return nr_spares ? spares[--nr_spares] : aligned_alloc(4096, LARGEST_REQUEST);
}

static void free_buffer(char *buffer, bool large) /* locked */
{
    if (large && nr_spares < MOST_SPARES)
        spares[nr_spares++] = buffer;
    else
        free(buffer);
}

/* A large one gives its buffer away and takes another, a small one is copied. pyfuse3 frees what it gets. */
static bool hand_over(struct queue *queue, char **buffer, size_t size) /* locked */
{
    struct item *item = malloc(sizeof *item);
    bool large = size >= WORTH_GIVING_AWAY;
    char *other = large ? new_buffer() : malloc(size ? size : 1);
    if (!item || !other) {
        free(item);
        free(other);
        end_session("out of memory for a request of %zu bytes", size);
        return false;
    }
    *item = (struct item){.size = size, .large = large, .data = large ? *buffer : other};
    if (large)
        *buffer = other;
    else
        memcpy(other, *buffer, size);
    if (!queue->head)
        make_readable(queue->fd);
    *queue->tail = item;
    queue->tail = &item->next;
    return true;
}

static struct item *take_from(struct queue *queue) /* locked */
{
    struct item *item = queue->head;
    if (item && !(queue->head = item->next)) {
        uint64_t count;
        queue->tail = &queue->head;
        if (queue != &for_pyfuse3 || !over)
            while (read(queue->fd, &count, sizeof count) < 0 && errno == EINTR)
                ;
    }
    return item;
}

static void clear(struct queue *queue) /* locked */
{
    struct item *item;
    while ((item = take_from(queue))) {
        free(item->data);
        free(item);
    }
    if (queue->fd >= 0)
        close(queue->fd);
    queue->fd = -1;
}

/* ---- answers ---------------------------------------------------------------------------------------------------------- */

/* 0, or the errno of a refusal that is a fault of ours; a request that was aborted, or a session gone, is none. */
static int answer(int fd, uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header out = {.len = sizeof out + (error ? 0 : size), .error = -error, .unique = unique};
    struct iovec parts[2] = {{&out, sizeof out}, {(void *)data, error ? 0 : size}};
    for (int tries = 0; writev(fd, parts, 2) < 0; tries++) {
        if (errno == ENOENT || errno == ENODEV || errno == ECONNABORTED || errno == EPIPE || errno == ECONNRESET)
            return 0;
        if (errno != EINTR && (errno != ENOMEM || tries > 100))
            return errno;
    }
    return 0;
}

/* ---- serving ---------------------------------------------------------------------------------------------------------- */

struct request {
    const struct fuse_in_header *in;
    enum operation operation;
    uint64_t handle, offset, length;
    char *payload;
};

/* Whether it is whole, and a read, a write or a flush. */
static bool is_io(char *buffer, size_t size, struct request *request)
{
    const struct fuse_in_header *in = (const void *)buffer;
    char *arguments = buffer + sizeof *in;
    size_t rest = size - sizeof *in;
    request->in = in;
    request->payload = NULL;
    request->offset = request->length = 0;
    if (in->opcode == FUSE_READ && rest >= sizeof(struct fuse_read_in)) {
        const struct fuse_read_in *read = (const void *)arguments;
        request->operation = OP_READ;
        request->handle = read->fh;
        request->offset = read->offset;
        request->length = read->size;
        return true;
    }
    if (in->opcode == FUSE_WRITE && rest >= sizeof(struct fuse_write_in)) {
        const struct fuse_write_in *write = (const void *)arguments;
        request->operation = OP_WRITE;
        request->handle = write->fh;
        request->offset = write->offset;
        request->length = write->size;
        request->payload = arguments + sizeof *write;
        return rest - sizeof *write >= write->size;
    }
    if (in->opcode == FUSE_FSYNC && rest >= sizeof(struct fuse_fsync_in)) {
        request->operation = OP_FLUSH;
        request->handle = ((const struct fuse_fsync_in *)arguments)->fh;
        return true;
    }
    return false;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static bool transfer(const struct grant *grant, char *data)
{
    for (unsigned i = 0; i < grant->nr_runs; data += grant->runs[i++].length)
        for (uint64_t done = 0, all = grant->runs[i].length; done < all;) {
            off_t offset = (off_t)(grant->runs[i].offset + done);
            ssize_t n = grant->operation == OP_READ ? pread(grant->fd, data + done, all - done, offset)
                                                    : pwrite(grant->fd, data + done, all - done, offset);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return false;
            done += n;
        }
    return true;
}

/* Whoever flushed sees a number only; of many, once a minute. */
static int flush(int fd)
{
    static _Atomic uint64_t told;
    int error = fdatasync(fd) < 0 ? errno : 0;
    if (error && (!told || now() - told > 60000000000)) {
        told = now();
        fprintf(stderr, "thinfs: flush of a data device: %s\n", strerror(error));
    }
    return error;
}

/* Do what is granted. False where the device below failed: Python tries again, and answers its error. But not a flush: it
 * tells of an error once. */
static bool perform(const struct grant *grant, const struct request *request, char *scratch, int *refusal)
{
    uint64_t unique = request->in->unique;
    if (grant->operation == OP_FLUSH) {
        *refusal = answer(fuse_fd, unique, flush(grant->fd), NULL, 0);
        return true;
    }
    if (!transfer(grant, grant->operation == OP_READ ? scratch : request->payload))
        return false;
    if (grant->operation == OP_READ)
        *refusal = answer(fuse_fd, unique, 0, scratch, grant->length);
    else {
        struct fuse_write_out out = {.size = (uint32_t)request->length};
        *refusal = answer(fuse_fd, unique, 0, &out, sizeof out);
    }
    return true;
}

static void *serve(void *number);

static bool new_thread(void) /* locked */
{
    sigset_t all, before;
    sigfillset(&all); /* the interpreter's signals are not for these */
    sigdelset(&all, WAKE_SIGNAL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    ended[nr_threads] = false;
    int error = pthread_create(&threads[nr_threads], NULL, serve, &ended[nr_threads]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        nr_threads++;
    else
        errno = error;
    return !error;
}

/* Called by the one that reads. It is as good as it was where there is no other thread to be had. */
static bool let_another_read(void)
{
    pthread_mutex_lock(&lock);
    bool let = nr_waiting > 0 || (nr_threads < MOST_THREADS && !stopping && !over && new_thread());
    if (let) {
        somebody_reads = false;
        pthread_cond_signal(&may_read);
    }
    pthread_mutex_unlock(&lock);
    return let;
}

/* True: you read, nobody else. False: it is over. */
static bool await_turn(void)
{
    pthread_mutex_lock(&lock);
    nr_waiting++;
    while (somebody_reads && !stopping && !over)
        pthread_cond_wait(&may_read, &lock);
    nr_waiting--;
    bool reads = !stopping && !over;
    if (reads)
        somebody_reads = true;
    pthread_mutex_unlock(&lock);
    return reads;
}

static void handle(char **buffer, size_t size, char *scratch, bool *reads)
{
    struct request request;
    struct grant grant;
    enum verdict verdict = NOT_ROUTED;
    int refusal = 0;
    if (((const struct fuse_in_header *)*buffer)->opcode == FUSE_INTERRUPT)
        return;
    if (is_io(*buffer, size, &request))
        verdict = volumes_begin(request.in->nodeid, request.operation, request.offset, request.length, &grant);
    if (verdict == GRANTED) {
        if (grant.was_slow)
            *reads = !let_another_read();
        uint64_t begin = now();
        bool done = perform(&grant, &request, scratch, &refusal);
        volumes_end(&grant, now() - begin);
        if (!done)
            verdict = FOR_PYTHON;
    }
    pthread_mutex_lock(&lock);
    if (refusal)
        end_session("an answer was refused: %s", strerror(refusal));
    switch (verdict) {
    case GRANTED:
        nr_served++;
        break;
    case FOR_PYTHON:
        nr_for_python++;
        hand_over(&for_python, buffer, size);
        break;
    case NOT_ROUTED:
        nr_for_pyfuse3++;
        hand_over(&for_pyfuse3, buffer, size);
    }
    pthread_mutex_unlock(&lock);
}

static void *serve(void *has_ended)
{
    pthread_mutex_lock(&lock);
    char *buffer = new_buffer(), *scratch = new_buffer();
    if (!buffer || !scratch)
        end_session("out of memory for a serving thread");
    pthread_mutex_unlock(&lock);
    bool reads = false;
    while (buffer && scratch && (reads || (reads = await_turn()))) {
        ssize_t n = read(fuse_fd, buffer, LARGEST_REQUEST);
        int error = n < 0 ? errno : 0;
        if (n >= (ssize_t)sizeof(struct fuse_in_header)) {
            handle(&buffer, n, scratch, &reads);
            error = 0;
        } else if (n > 0)
            error = EBADMSG;
        pthread_mutex_lock(&lock);
        if (n == 0 || error == ENODEV || error == ECONNABORTED || error == ECONNRESET)
            end_session(NULL); /* unmounted */
        else if (error && error != EINTR && error != ENOENT && error != EAGAIN)
            end_session("reading requests: %s", strerror(error));
        if (stopping || over) {
            somebody_reads = somebody_reads && !reads;
            reads = false;
        }
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_lock(&lock);
    if (buffer)
        free_buffer(buffer, true);
    if (scratch)
        free_buffer(scratch, true);
    *(bool *)has_ended = true;
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* ---- for pyfuse3 -------------------------------------------------------------------------------------------------------- */

bool serving_takes_session(void) { return prepared; }

int serving_wake_fd(void) { return for_pyfuse3.fd; }

int serving_receive(void **mem)
{
    pthread_mutex_lock(&lock);
    struct item *item = take_from(&for_pyfuse3);
    int answer = over ? 0 : -EINTR;
    pthread_mutex_unlock(&lock);
    if (!item)
        return answer;
    *mem = item->data;
    answer = (int)item->size;
    free(item);
    return answer;
}

/* ---- Request -------------------------------------------------------------------------------------------------------------- */

struct py_request {
    PyObject_HEAD
    struct item *item;
    struct request request;
    unsigned long session_nr;
    bool answered;
};

static PyObject *send_answer(struct py_request *r, int error, const void *data, size_t size)
{
    int refusal = 0;
    if (r->answered) {
        PyErr_SetString(PyExc_ValueError, "the request was answered before");
        return NULL;
    }
    r->answered = true;
    if (r->session_nr == session_nr && fuse_fd >= 0) /* both change under the GIL */
        refusal = answer(fuse_fd, r->request.in->unique, error, data, size);
    if (!refusal)
        Py_RETURN_NONE;
    errno = refusal;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *request_data(struct py_request *r, PyObject *data)
{
    Py_buffer view;
    PyObject *result = NULL;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (r->request.operation != OP_READ || (uint64_t)view.len > r->request.length)
        PyErr_Format(PyExc_ValueError, "%zd bytes do not answer it", view.len);
    else
        result = send_answer(r, 0, view.buf, view.len);
    PyBuffer_Release(&view);
    return result;
}

static PyObject *request_done(struct py_request *r, PyObject *none)
{
    struct fuse_write_out out = {.size = (uint32_t)r->request.length};
    (void)none;
    if (r->request.operation == OP_READ) {
        PyErr_SetString(PyExc_ValueError, "a read is answered by its data");
        return NULL;
    }
    return send_answer(r, 0, &out, r->request.operation == OP_WRITE ? sizeof out : 0);
}

static PyObject *request_fail(struct py_request *r, PyObject *args)
{
    int error;
    if (!PyArg_ParseTuple(args, "i", &error))
        return NULL;
    if (error <= 0 || error > 1000)
        return PyErr_Format(PyExc_ValueError, "%d is no errno", error);
    return send_answer(r, error, NULL, 0);
}

static PyObject *request_written(struct py_request *r, PyObject *args)
{
    unsigned long long nr;
    if (!PyArg_ParseTuple(args, "K", &nr))
        return NULL;
    if (r->request.operation != OP_WRITE || nr > r->request.length)
        return PyErr_Format(PyExc_ValueError, "%llu bytes written do not answer it", nr);
    struct fuse_write_out out = {.size = (uint32_t)nr};
    return send_answer(r, 0, &out, sizeof out);
}

static void request_dealloc(struct py_request *r)
{
    if (r->item) {
        if (!r->answered && r->session_nr == session_nr && fuse_fd >= 0) /* dropped: a client must not wait for ever */
            answer(fuse_fd, r->request.in->unique, EIO, NULL, 0);
        pthread_mutex_lock(&lock);
        free_buffer(r->item->data, r->item->large);
        pthread_mutex_unlock(&lock);
        free(r->item);
    }
    Py_TYPE(r)->tp_free((PyObject *)r);
}

static int request_buffer(struct py_request *r, Py_buffer *view, int flags)
{
    Py_ssize_t size = r->request.operation == OP_WRITE ? (Py_ssize_t)r->request.length : 0;
    return PyBuffer_FillInfo(view, (PyObject *)r, size ? r->request.payload : (char *)r->item->data, size, 1, flags);
}

static PyObject *request_inode(struct py_request *r, void *c) { (void)c; return PyLong_FromUnsignedLongLong(r->request.in->nodeid); }
static PyObject *request_handle(struct py_request *r, void *c) { (void)c; return PyLong_FromUnsignedLongLong(r->request.handle); }
static PyObject *request_operation(struct py_request *r, void *c) { (void)c; return PyLong_FromLong(r->request.operation); }
static PyObject *request_offset(struct py_request *r, void *c) { (void)c; return PyLong_FromUnsignedLongLong(r->request.offset); }
static PyObject *request_length(struct py_request *r, void *c) { (void)c; return PyLong_FromUnsignedLongLong(r->request.length); }

static PyGetSetDef request_attributes[] = {
    {"inode", (getter)request_inode, NULL, NULL, NULL},
    {"handle", (getter)request_handle, NULL, "As open has answered.", NULL},
    {"operation", (getter)request_operation, NULL, "READ, WRITE or FLUSH.", NULL},
    {"offset", (getter)request_offset, NULL, "Bytes; 0 for a flush.", NULL},
    {"length", (getter)request_length, NULL, "Bytes; 0 for a flush.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define METHOD(name, flags, text) {#name, (PyCFunction)request_##name, flags, text}
static PyMethodDef request_methods[] = {
    METHOD(data, METH_O, "data(buffer): answers a read; a short one is its end."),
    METHOD(done, METH_NOARGS, "done(): answers a write, all of it, or a flush."),
    METHOD(written, METH_VARARGS, "written(nr_bytes): answers a write that was cut off."),
    METHOD(fail, METH_VARARGS, "fail(errno)"),
    {NULL, NULL, 0, NULL},
};

static PyBufferProcs request_as_buffer = {(getbufferproc)request_buffer, NULL};

PyTypeObject RequestType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "thinfs.fuse._fuseshim.IORequest",
    .tp_basicsize = sizeof(struct py_request),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A read, write or flush that is Python's; as a buffer it is what to write. Answered once; EIO if dropped.",
    .tp_dealloc = (destructor)request_dealloc,
    .tp_as_buffer = &request_as_buffer,
    .tp_methods = request_methods,
    .tp_getset = request_attributes,
};

/* ---- the module's functions ------------------------------------------------------------------------------------------------ */

static PyObject *prepare(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    if (prepared) {
        PyErr_SetString(PyExc_RuntimeError, "prepared already");
        return NULL;
    }
    pthread_mutex_lock(&lock);
    for_python.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    for_pyfuse3.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    prepared = for_python.fd >= 0 && for_pyfuse3.fd >= 0;
    over = stopping = somebody_reads = false;
    failure[0] = 0;
    nr_served = nr_for_python = nr_for_pyfuse3 = 0;
    session_nr++;
    if (!prepared) {
        clear(&for_python);
        clear(&for_pyfuse3);
    }
    pthread_mutex_unlock(&lock);
    return prepared ? PyLong_FromLong(for_python.fd) : PyErr_SetFromErrno(PyExc_OSError);
}

static void on_wake(int signal) { (void)signal; /* only read() is to return */ }

static PyObject *start(PyObject *self, PyObject *args)
{
    int fd;
    (void)self;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    if (!prepared || fuse_fd >= 0) {
        PyErr_SetString(PyExc_RuntimeError, prepared ? "started already" : "not prepared");
        return NULL;
    }
    struct sigaction action = {.sa_handler = on_wake};
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0 || sigaction(WAKE_SIGNAL, &action, NULL) < 0) {
        if (own >= 0)
            close(own);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    pthread_mutex_lock(&lock);
    fuse_fd = own;
    bool started = new_thread();
    int error = errno;
    if (!started)
        fuse_fd = -1;
    pthread_mutex_unlock(&lock);
    if (started)
        Py_RETURN_NONE;
    close(own);
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* A signal that comes just before read() is lost: so until the thread has ended. */
static void join_all(void)
{
    static const struct timespec moment = {0, 2000000};
    for (unsigned i = 0; i < nr_threads; i++) {
        for (bool has_ended = false; !has_ended;) {
            pthread_mutex_lock(&lock);
            has_ended = ended[i];
            pthread_mutex_unlock(&lock);
            if (!has_ended) {
                pthread_kill(threads[i], WAKE_SIGNAL);
                nanosleep(&moment, NULL);
            }
        }
        pthread_join(threads[i], NULL);
    }
}

static PyObject *stop(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    pthread_mutex_lock(&lock);
    stopping = true;
    pthread_cond_broadcast(&may_read);
    pthread_mutex_unlock(&lock);
    Py_BEGIN_ALLOW_THREADS
    join_all();
    Py_END_ALLOW_THREADS
    pthread_mutex_lock(&lock);
    nr_threads = 0;
    clear(&for_python);
    clear(&for_pyfuse3);
    if (fuse_fd >= 0)
        close(fuse_fd);
    fuse_fd = -1;
    prepared = false;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *take(PyObject *self, PyObject *none)
{
    PyObject *list = PyList_New(0);
    (void)self, (void)none;
    for (int i = 0; list && i < TAKEN_AT_ONCE; i++) {
        struct py_request *r = PyObject_New(struct py_request, &RequestType);
        if (!r) {
            Py_CLEAR(list);
            break;
        }
        r->item = NULL;
        r->answered = false;
        pthread_mutex_lock(&lock);
        r->item = for_python.fd < 0 ? NULL : take_from(&for_python);
        r->session_nr = session_nr;
        pthread_mutex_unlock(&lock);
        if (r->item)
            is_io(r->item->data, r->item->size, &r->request);
        bool more = r->item != NULL;
        if (more && PyList_Append(list, (PyObject *)r) < 0)
            Py_CLEAR(list);
        Py_DECREF(r);
        if (!more)
            break;
    }
    return list;
}

static PyObject *counts(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    pthread_mutex_lock(&lock);
    unsigned long served = nr_served, python = nr_for_python, pyfuse3 = nr_for_pyfuse3;
    pthread_mutex_unlock(&lock);
    return Py_BuildValue("kkk", served, python, pyfuse3);
}

static PyObject *failure_text(PyObject *self, PyObject *none)
{
    char text[sizeof failure];
    (void)self, (void)none;
    pthread_mutex_lock(&lock);
    memcpy(text, failure, sizeof text);
    pthread_mutex_unlock(&lock);
    return text[0] ? PyUnicode_DecodeLocale(text, "surrogateescape") : Py_NewRef(Py_None);
}

PyMethodDef serving_prepare = {"prepare", prepare, METH_NOARGS,
                               "prepare() -> the descriptor that is readable when take() has something. Before the session."};
PyMethodDef serving_start = {"start", start, METH_VARARGS, "start(fd): serve the session of /dev/fuse's descriptor, which is duplicated."};
PyMethodDef serving_stop = {"stop", stop, METH_NOARGS, "stop(): no thread is left, requests not taken are dropped. Before the session is closed."};
PyMethodDef serving_take = {"take", take, METH_NOARGS, "take() -> IORequests that have come, at most 64; they are the caller's to answer."};
PyMethodDef serving_counts = {"counts", counts, METH_NOARGS, "counts() -> (served, taken to Python, to pyfuse3), requests of this session."};
PyMethodDef serving_failure = {"failure", failure_text, METH_NOARGS, "failure() -> why the threads ended the session, or None."};
