/* Volumes: a bounded table of mapping words, a gate each, and the inodes that are served from them.
 *
 * A word is what the mapping tree's leaf has, data_block << 24 | time; all ones where it is not known. Known: it may be
 * read. Known and not older than the volume's snapshot clock: nobody shares it, it may be written in place.
 * Words lie in pages of 512 consecutive thin blocks, made on demand; all volumes together have nr_pages at most, and
 * the one not used for longest (about: a clock) gives way. So a table costs what is used, never what a volume could be.
 * Who changes mappings says so: `learn` adds a word that was unknown, or takes the place of a shared one (who then must
 * shut the gate once before that block is written again); everything else happens under a shut gate. */
#include "_volumes.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define UNKNOWN UINT64_MAX
enum { TIME_BITS = 24, PAGE_WORDS = 512, NR_ROUTES = 1024, MOST_PAGES = 16384 };
static const uint64_t TIME_MASK = (1 << TIME_BITS) - 1;
static const uint64_t SLOW_NANOSECONDS = 150000; /* a few times what it takes to wake a thread */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* all that follows */
static pthread_cond_t drained = PTHREAD_COND_INITIALIZER;

struct volume {
    PyObject_HEAD
    uint64_t id;        /* of its pages; a new one forgets them all */
    uint64_t clock;     /* words older than this are shared */
    uint64_t block_bytes;
    int64_t written_ns; /* CLOCK_REALTIME of the last write served */
    int fd;             /* of the data device, our own */
    bool plain_flush;   /* nothing to commit: a flush is fdatasync */
    unsigned shut;      /* how often; open at 0 */
    unsigned nr_granted; /* reads and writes */
    unsigned nr_flushes; /* they need no mapping: a shut gate does not wait for them */
    bool slow[NR_OPERATIONS];
};

/* ---- the table ---------------------------------------------------------------------------------------------------- */

struct page {
    uint64_t volume_id, number;
    uint32_t next; /* of its bucket: index + 1 */
    bool used;     /* since the clock's hand came by */
};

static struct page pages[MOST_PAGES];
static uint32_t buckets[MOST_PAGES];
static uint64_t (*words)[PAGE_WORDS];
static uint32_t nr_pages, page_limit = MOST_PAGES, hand;
static uint64_t last_volume_id;

static uint32_t *bucket_of(uint64_t volume_id, uint64_t number)
{
    uint64_t mixed = (volume_id * 0x9e3779b97f4a7c15u + number) * 0xbf58476d1ce4e5b9u;
    return &buckets[(mixed >> 40) % MOST_PAGES];
}

static uint64_t *page_of(uint64_t volume_id, uint64_t number)
{
    for (uint32_t at = *bucket_of(volume_id, number); at; at = pages[at - 1].next)
        if (pages[at - 1].number == number && pages[at - 1].volume_id == volume_id) {
            pages[at - 1].used = true;
            return words[at - 1];
        }
    return NULL;
}

static uint32_t evicted(void)
{
    for (;; hand = (hand + 1) % nr_pages) {
        if (pages[hand].used) {
            pages[hand].used = false;
            continue;
        }
        uint32_t *link = bucket_of(pages[hand].volume_id, pages[hand].number);
        while (*link != hand + 1)
            link = &pages[*link - 1].next;
        *link = pages[hand].next;
        return hand;
    }
}

static uint64_t *new_page(uint64_t volume_id, uint64_t number)
{
    uint32_t at = nr_pages < page_limit ? nr_pages++ : evicted();
    uint32_t *bucket = bucket_of(volume_id, number);
    pages[at] = (struct page){.volume_id = volume_id, .number = number, .next = *bucket, .used = true};
    *bucket = at + 1;
    memset(words[at], 0xff, sizeof words[at]);
    return words[at];
}

static uint64_t word_of(const struct volume *v, uint64_t thin_block)
{
    const uint64_t *page = page_of(v->id, thin_block / PAGE_WORDS);
    return page ? page[thin_block % PAGE_WORDS] : UNKNOWN;
}

static void set_word(const struct volume *v, uint64_t thin_block, uint64_t word)
{
    uint64_t *page = page_of(v->id, thin_block / PAGE_WORDS);
    if (!page)
        page = new_page(v->id, thin_block / PAGE_WORDS);
    page[thin_block % PAGE_WORDS] = word;
}

static void forget_words(struct volume *v, uint64_t begin, uint64_t end)
{
    if ((end - begin) / PAGE_WORDS > nr_pages) {
        v->id = ++last_volume_id;
        return;
    }
    while (begin < end) {
        uint64_t stop = (begin / PAGE_WORDS + 1) * PAGE_WORDS;
        uint64_t *page = page_of(v->id, begin / PAGE_WORDS);
        if (stop > end)
            stop = end;
        if (page)
            memset(&page[begin % PAGE_WORDS], 0xff, (stop - begin) * sizeof *page);
        begin = stop;
    }
}

/* ---- inodes -------------------------------------------------------------------------------------------------------- */

struct route {
    struct route *next;
    uint64_t inode;
    struct volume *volume; /* NULL: all I/O is Python's */
    uint64_t size_bytes;
    bool writable;
};

static struct route *routes[NR_ROUTES];

static struct route **place_of(uint64_t inode)
{
    struct route **place = &routes[inode % NR_ROUTES];
    while (*place && (*place)->inode != inode)
        place = &(*place)->next;
    return place;
}

static bool add_route(uint64_t inode) /* where there is none */
{
    struct route *made = calloc(1, sizeof *made);
    if (!made)
        return false;
    made->inode = inode;
    pthread_mutex_lock(&lock);
    struct route **place = place_of(inode);
    if (!*place) {
        *place = made;
        made = NULL;
    }
    pthread_mutex_unlock(&lock);
    free(made);
    return true;
}

/* ---- grants --------------------------------------------------------------------------------------------------------- */

/* Every block known, and unshared if it is to be written; neighbours joined. All is looked up before anything is done. */
static bool find_runs(const struct volume *v, uint64_t offset, uint64_t length, struct grant *grant)
{
    bool writing = grant->operation == OP_WRITE;
    uint64_t block = offset / v->block_bytes, begin = offset % v->block_bytes;
    grant->nr_runs = 0;
    for (uint64_t done = 0, size; done < length; done += size, begin = 0, block++) {
        uint64_t word = word_of(v, block);
        if (word == UNKNOWN || (writing && (word & TIME_MASK) < v->clock))
            return false;
        uint64_t at = (word >> TIME_BITS) * v->block_bytes + begin;
        size = v->block_bytes - begin < length - done ? v->block_bytes - begin : length - done;
        unsigned last = grant->nr_runs - 1;
        if (grant->nr_runs && grant->runs[last].offset + grant->runs[last].length == at)
            grant->runs[last].length += size;
        else if (grant->nr_runs == MOST_RUNS)
            return false;
        else {
            grant->runs[grant->nr_runs].offset = at;
            grant->runs[grant->nr_runs++].length = size;
        }
    }
    return true;
}

static bool allowed(const struct route *route, uint64_t offset, uint64_t length, struct grant *grant)
{
    const struct volume *v = route->volume;
    if (!v || v->shut || length > LARGEST_IO)
        return false;
    grant->length = length;
    switch (grant->operation) {
    case OP_READ:
        if (offset >= route->size_bytes)
            grant->length = 0;
        else if (length > route->size_bytes - offset)
            grant->length = route->size_bytes - offset;
        return find_runs(v, offset, grant->length, grant);
    case OP_WRITE:
        return route->writable && offset <= route->size_bytes && length <= route->size_bytes - offset &&
               find_runs(v, offset, length, grant);
    case OP_FLUSH:
        return v->plain_flush;
    default:
        return false;
    }
}

enum verdict volumes_begin(uint64_t inode, enum operation operation, uint64_t offset, uint64_t length, struct grant *grant)
{
    enum verdict verdict = NOT_ROUTED;
    grant->operation = operation;
    pthread_mutex_lock(&lock);
    const struct route *route = *place_of(inode);
    if (route) {
        verdict = FOR_PYTHON;
        if (allowed(route, offset, length, grant)) {
            verdict = GRANTED;
            grant->volume = route->volume;
            grant->fd = route->volume->fd;
            grant->was_slow = route->volume->slow[operation];
            *(operation == OP_FLUSH ? &route->volume->nr_flushes : &route->volume->nr_granted) += 1;
        }
    }
    pthread_mutex_unlock(&lock);
    return verdict;
}

void volumes_end(const struct grant *grant, uint64_t nanoseconds)
{
    struct volume *v = grant->volume;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    pthread_mutex_lock(&lock);
    v->slow[grant->operation] = nanoseconds > SLOW_NANOSECONDS;
    if (grant->operation == OP_WRITE)
        v->written_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    *(grant->operation == OP_FLUSH ? &v->nr_flushes : &v->nr_granted) -= 1;
    if (v->shut)
        pthread_cond_broadcast(&drained);
    pthread_mutex_unlock(&lock);
}

/* ---- what Python sees ------------------------------------------------------------------------------------------------ */

/* The GIL is let go while it waits: what is granted ends without it, but other threads should run meanwhile. */
static void shut_and_drain(struct volume *v, bool flushes_too)
{
    pthread_mutex_lock(&lock);
    v->shut++;
    if (v->nr_granted || (flushes_too && v->nr_flushes)) {
        pthread_mutex_unlock(&lock);
        Py_BEGIN_ALLOW_THREADS
        pthread_mutex_lock(&lock);
        while (v->nr_granted || (flushes_too && v->nr_flushes))
            pthread_cond_wait(&drained, &lock);
        pthread_mutex_unlock(&lock);
        Py_END_ALLOW_THREADS
    } else
        pthread_mutex_unlock(&lock);
}

static PyObject *volume_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"fd", "block_bytes", NULL};
    int fd;
    unsigned long long block_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "iK", names, &fd, &block_bytes))
        return NULL;
    if (block_bytes < SMALLEST_BLOCK)
        return PyErr_Format(PyExc_ValueError, "block_bytes %llu: the smallest data block is %d", block_bytes, SMALLEST_BLOCK);
    if (!words) { /* reserved, not used: a page costs memory from its first word on */
        void *space = mmap(NULL, sizeof *words * MOST_PAGES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (space == MAP_FAILED)
            return PyErr_SetFromErrno(PyExc_OSError);
        words = space;
    }
    struct volume *v = (struct volume *)type->tp_alloc(type, 0);
    if (!v)
        return NULL;
    v->block_bytes = block_bytes;
    v->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (v->fd < 0) {
        Py_DECREF(v);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    pthread_mutex_lock(&lock);
    v->id = ++last_volume_id;
    pthread_mutex_unlock(&lock);
    return (PyObject *)v;
}

static void end_volume(struct volume *v)
{
    if (v->fd < 0)
        return;
    shut_and_drain(v, true);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < NR_ROUTES; i++)
        for (struct route *route = routes[i]; route; route = route->next)
            if (route->volume == v)
                route->volume = NULL;
    v->id = ++last_volume_id;
    pthread_mutex_unlock(&lock);
    close(v->fd);
    v->fd = -1;
}

static void volume_dealloc(struct volume *v)
{
    end_volume(v);
    Py_TYPE(v)->tp_free((PyObject *)v);
}

static PyObject *volume_close(struct volume *v, PyObject *none)
{
    (void)none;
    end_volume(v);
    Py_RETURN_NONE;
}

static PyObject *volume_shut(struct volume *v, PyObject *none)
{
    (void)none;
    shut_and_drain(v, false);
    Py_RETURN_NONE;
}

static PyObject *volume_open(struct volume *v, PyObject *none)
{
    (void)none;
    if (!v->shut || (v->fd < 0 && v->shut == 1)) {
        PyErr_SetString(PyExc_RuntimeError, v->shut ? "the volume is closed" : "the gate is open already");
        return NULL;
    }
    pthread_mutex_lock(&lock);
    v->shut--;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *volume_serve(struct volume *v, PyObject *args)
{
    unsigned long long inode, size_bytes;
    int writable;
    if (!PyArg_ParseTuple(args, "KKp", &inode, &size_bytes, &writable))
        return NULL;
    if (v->fd < 0) {
        PyErr_SetString(PyExc_RuntimeError, "the volume is closed");
        return NULL;
    }
    if (!add_route(inode))
        return PyErr_NoMemory();
    pthread_mutex_lock(&lock);
    struct route *route = *place_of(inode);
    route->volume = v;
    route->size_bytes = size_bytes;
    route->writable = writable;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *volume_withdraw(struct volume *v, PyObject *args)
{
    unsigned long long inode;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    shut_and_drain(v, true);
    pthread_mutex_lock(&lock);
    struct route *route = *place_of(inode);
    if (route && route->volume == v)
        route->volume = NULL;
    v->shut--;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *volume_learn(struct volume *v, PyObject *args)
{
    unsigned long long thin_block, word;
    if (!PyArg_ParseTuple(args, "KK", &thin_block, &word))
        return NULL;
    pthread_mutex_lock(&lock);
    uint64_t known = word_of(v, thin_block);
    bool shared = (known & TIME_MASK) < v->clock; /* read at most: what is under way there may go on */
    bool contradicts = known != UNKNOWN && known != word && !shared && !(v->shut && !v->nr_granted);
    if (!contradicts)
        set_word(v, thin_block, word);
    pthread_mutex_unlock(&lock);
    if (contradicts)
        return PyErr_Format(PyExc_RuntimeError, "thin block %llu: its word changes under an open gate", thin_block);
    Py_RETURN_NONE;
}

/* A leaf's keys and values: every word of [begin, end) in it that is not known yet. */
static PyObject *volume_learn_leaf(struct volume *v, PyObject *args)
{
    Py_buffer keys, values;
    unsigned long long begin, end;
    Py_ssize_t nr;
    if (!PyArg_ParseTuple(args, "y*y*nKK", &keys, &values, &nr, &begin, &end))
        return NULL;
    bool fits = nr >= 0 && keys.len / 8 >= nr && values.len / 8 >= nr;
    if (fits) {
        const uint64_t *key = keys.buf, *value = values.buf;
        uint64_t *page = NULL, number = UNKNOWN;
        pthread_mutex_lock(&lock);
        for (Py_ssize_t i = 0; i < nr; i++) {
            if (key[i] < begin || key[i] >= end)
                continue;
            if (key[i] / PAGE_WORDS != number) {
                number = key[i] / PAGE_WORDS;
                page = page_of(v->id, number);
                if (!page)
                    page = new_page(v->id, number);
            }
            if (page[key[i] % PAGE_WORDS] == UNKNOWN)
                page[key[i] % PAGE_WORDS] = value[i];
        }
        pthread_mutex_unlock(&lock);
    }
    PyBuffer_Release(&keys);
    PyBuffer_Release(&values);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "fewer keys or values than entries");
        return NULL;
    }
    Py_RETURN_NONE;
}

static bool is_drained(struct volume *v)
{
    pthread_mutex_lock(&lock);
    bool answer = v->shut && !v->nr_granted;
    pthread_mutex_unlock(&lock);
    if (!answer)
        PyErr_SetString(PyExc_RuntimeError, "the gate is open: permissions are taken away under a shut one only");
    return answer;
}

static PyObject *volume_forget(struct volume *v, PyObject *args)
{
    unsigned long long begin, end;
    if (!PyArg_ParseTuple(args, "KK", &begin, &end) || !is_drained(v))
        return NULL;
    pthread_mutex_lock(&lock);
    if (begin < end)
        forget_words(v, begin, end);
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *volume_set_clock(struct volume *v, PyObject *args)
{
    unsigned long long clock;
    if (!PyArg_ParseTuple(args, "K", &clock) || !is_drained(v))
        return NULL;
    pthread_mutex_lock(&lock);
    v->clock = clock;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *volume_set_plain_flush(struct volume *v, PyObject *args)
{
    int plain;
    if (!PyArg_ParseTuple(args, "p", &plain))
        return NULL;
    pthread_mutex_lock(&lock);
    v->plain_flush = plain;
    pthread_mutex_unlock(&lock);
    Py_RETURN_NONE;
}

static PyObject *volume_word(struct volume *v, PyObject *args)
{
    unsigned long long thin_block;
    if (!PyArg_ParseTuple(args, "K", &thin_block))
        return NULL;
    pthread_mutex_lock(&lock);
    uint64_t word = word_of(v, thin_block);
    pthread_mutex_unlock(&lock);
    if (word == UNKNOWN)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(word);
}

static PyObject *volume_written_ns(struct volume *v, void *closure)
{
    (void)closure;
    pthread_mutex_lock(&lock);
    int64_t written = v->written_ns;
    pthread_mutex_unlock(&lock);
    return PyLong_FromLongLong(written);
}

#define METHOD(name, flags, text) {#name, (PyCFunction)volume_##name, flags, text}
static PyMethodDef volume_methods[] = {
    METHOD(shut, METH_NOARGS, "shut(): no request is served any more when it returns. Nests."),
    METHOD(open, METH_NOARGS, "open(): undo one shut()."),
    METHOD(serve, METH_VARARGS, "serve(inode, size_bytes, writable): route the inode, and serve it from this volume."),
    METHOD(withdraw, METH_VARARGS, "withdraw(inode): its I/O is Python's when it returns."),
    METHOD(learn, METH_VARARGS, "learn(thin_block, word): one that was unknown or shared, or any under a shut gate."),
    METHOD(learn_leaf, METH_VARARGS, "learn_leaf(keys, values, nr_entries, begin, end): what is unknown, of arrays of 64 bit."),
    METHOD(forget, METH_VARARGS, "forget(begin, end): under a shut gate, thin blocks [begin, end)."),
    METHOD(set_clock, METH_VARARGS, "set_clock(time): under a shut gate; words older than this are shared."),
    METHOD(set_plain_flush, METH_VARARGS, "set_plain_flush(plain): whether a flush is fdatasync and nothing more."),
    METHOD(word, METH_VARARGS, "word(thin_block) -> what is known of it, or None."),
    METHOD(close, METH_NOARGS, "close(): drained, withdrawn everywhere, its descriptor closed."),
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef volume_attributes[] = {
    {"written_ns", (getter)volume_written_ns, NULL, "Time of the last write served, as time.time_ns(); 0 if none.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject VolumeType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "thinfs.fuse._fuseshim.Volume",
    .tp_basicsize = sizeof(struct volume),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Volume(fd, block_bytes): what serving threads know of one thin's mappings. fd is duplicated.",
    .tp_new = volume_new,
    .tp_dealloc = (destructor)volume_dealloc,
    .tp_methods = volume_methods,
    .tp_getset = volume_attributes,
};

static PyObject *route_inode(PyObject *self, PyObject *args)
{
    unsigned long long inode;
    (void)self;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    if (!add_route(inode))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *unroute_inode(PyObject *self, PyObject *args)
{
    unsigned long long inode;
    (void)self;
    if (!PyArg_ParseTuple(args, "K", &inode))
        return NULL;
    pthread_mutex_lock(&lock);
    struct route **place = place_of(inode), *route = *place;
    bool served = route && route->volume;
    if (route && !served)
        *place = route->next;
    pthread_mutex_unlock(&lock);
    if (served)
        return PyErr_Format(PyExc_RuntimeError, "inode %llu: withdraw it from its volume first", inode);
    free(route);
    Py_RETURN_NONE;
}

static PyObject *limit_table(PyObject *self, PyObject *args)
{
    unsigned limit;
    (void)self;
    if (!PyArg_ParseTuple(args, "I", &limit))
        return NULL;
    if (limit < 1 || limit > MOST_PAGES)
        return PyErr_Format(PyExc_ValueError, "%u pages: 1 to %d", limit, MOST_PAGES);
    pthread_mutex_lock(&lock);
    bool too_late = nr_pages > limit;
    if (!too_late)
        page_limit = limit;
    pthread_mutex_unlock(&lock);
    if (too_late)
        return PyErr_Format(PyExc_RuntimeError, "%u pages: %u are in use", limit, nr_pages);
    Py_RETURN_NONE;
}

static PyObject *table_pages(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    return PyLong_FromUnsignedLong(nr_pages);
}

PyMethodDef volumes_route = {"route", route_inode, METH_VARARGS, "route(inode): its I/O goes to take(), not to pyfuse3."};
PyMethodDef volumes_unroute = {"unroute", unroute_inode, METH_VARARGS, "unroute(inode): its I/O is pyfuse3's again."};
PyMethodDef volumes_limit_table = {"limit_table", limit_table, METH_VARARGS,
                                   "limit_table(nr_pages): of 512 words (4 KiB), for all volumes together; not below what is used."};
PyMethodDef volumes_table_pages = {"table_pages", table_pages, METH_NOARGS, "Pages in use, of 4 KiB."};
