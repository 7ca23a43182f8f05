/* The loops over single mappings, which Python would take minutes for: leaves to runs, runs to counts and text, back.
 *
 * Promises: a run is four u64 in an array("Q"): thin_begin, data_begin, length, time; neighbours that continue each
 * other are one. Every length and index is checked against the buffer it lies in, whatever a block says. Never decides
 * anything, never reads or writes a file: see walk.py, ref_counts.py, xml_source.py. Source: docs/reference/format.md, 3.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define BLOCK_BYTES 4096
#define HEADER_BYTES 32
#define TIME_BITS 24
#define MANY 254 /* from here on the exact count is in a dict: ref_counts.py */
#define AHEAD 16

typedef struct {
    uint64_t thin_begin, data_begin, length, time;
} run_t;

static uint32_t le32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint64_t le64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

/* `nr` runs of a buffer, which must hold that many. */
static run_t *runs_of(Py_buffer *buffer, Py_ssize_t nr)
{
    if (nr < 0 || nr > buffer->len / (Py_ssize_t)sizeof(run_t)) {
        PyErr_SetString(PyExc_ValueError, "fewer runs than said");
        return NULL;
    }
    return buffer->buf;
}

/* How many entries a node has, -1 with an exception if they do not fit in it. */
static Py_ssize_t entries_of(const Py_buffer *block, const uint8_t **keys, const uint8_t **values)
{
    const uint8_t *data = block->buf;
    uint32_t nr, max;
    if (block->len < BLOCK_BYTES)
        goto refused;
    nr = le32(data + 16);
    max = le32(data + 20);
    if (nr > max || max > (BLOCK_BYTES - HEADER_BYTES) / 16 || le32(data + 24) != 8)
        goto refused;
    *keys = data + HEADER_BYTES;
    *values = *keys + 8 * (size_t)max;
    return nr;
refused:
    PyErr_SetString(PyExc_ValueError, "not a btree node of 8-byte values");
    return -1;
}

static PyObject *keys_ascend(PyObject *module, PyObject *args)
{
    Py_buffer block;
    unsigned long long low, last;
    const uint8_t *keys, *values;
    Py_ssize_t nr;
    int sound = 1;
    if (!PyArg_ParseTuple(args, "y*KK", &block, &low, &last))
        return NULL;
    nr = entries_of(&block, &keys, &values);
    for (Py_ssize_t i = 0; i < nr; i++) {
        uint64_t key = le64(keys + 8 * i);
        if (i ? key <= low : key < low) {
            sound = 0;
            break;
        }
        low = key;
    }
    if (nr > 0 && low > last)
        sound = 0;
    PyBuffer_Release(&block);
    return nr < 0 ? NULL : PyBool_FromLong(sound);
}

static PyObject *entries(PyObject *module, PyObject *args)
{
    Py_buffer block;
    const uint8_t *keys, *values;
    uint64_t lowest = 0, highest = 0;
    Py_ssize_t nr;
    if (!PyArg_ParseTuple(args, "y*", &block))
        return NULL;
    nr = entries_of(&block, &keys, &values);
    if (nr > 0) {
        lowest = le64(keys);
        highest = le64(keys + 8 * (nr - 1));
    }
    PyBuffer_Release(&block);
    return nr < 0 ? NULL : Py_BuildValue("nKK", nr, lowest, highest);
}

static PyObject *append_runs(PyObject *module, PyObject *args)
{
    Py_buffer block, out;
    Py_ssize_t nr_runs, nr;
    const uint8_t *keys, *values;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*w*n", &block, &out, &nr_runs))
        return NULL;
    nr = entries_of(&block, &keys, &values);
    runs = nr < 0 ? NULL : runs_of(&out, nr_runs);
    if (runs != NULL && nr_runs + nr > out.len / (Py_ssize_t)sizeof(run_t)) {
        PyErr_SetString(PyExc_ValueError, "no room for the runs of a leaf");
        runs = NULL;
    }
    if (runs != NULL) {
        run_t *last = nr_runs ? runs + nr_runs - 1 : NULL;
        for (Py_ssize_t i = 0; i < nr; i++) {
            uint64_t key = le64(keys + 8 * i), value = le64(values + 8 * i);
            uint64_t data_block = value >> TIME_BITS, time = value & ((1 << TIME_BITS) - 1);
            if (last != NULL && key == last->thin_begin + last->length && data_block == last->data_begin + last->length &&
                time == last->time) {
                last->length++;
                continue;
            }
            last = runs + nr_runs++;
            *last = (run_t){key, data_block, 1, time};
        }
    }
    PyBuffer_Release(&block);
    PyBuffer_Release(&out);
    return runs == NULL ? NULL : PyLong_FromSsize_t(nr_runs);
}

/* One more reference of a block whose count does not fit in a byte. 0, or -1 with an exception. */
static int count_many(PyObject *many, uint64_t block)
{
    int failed = -1;
    PyObject *key = PyLong_FromUnsignedLongLong(block), *before = NULL, *after = NULL;
    if (key == NULL)
        return -1;
    before = PyDict_GetItemWithError(many, key);
    if (before == NULL && PyErr_Occurred())
        goto out;
    after = PyLong_FromLongLong(before == NULL ? MANY : PyLong_AsLongLong(before) + 1);
    if (after != NULL)
        failed = PyDict_SetItem(many, key, after);
    Py_XDECREF(after);
out:
    Py_DECREF(key);
    return failed;
}

static PyObject *count_runs(PyObject *module, PyObject *args)
{
    Py_buffer in, out;
    Py_ssize_t nr_runs, refused = -1;
    PyObject *many;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*nw*O!", &in, &nr_runs, &out, &PyDict_Type, &many))
        return NULL;
    runs = runs_of(&in, nr_runs);
    for (Py_ssize_t i = 0; runs != NULL && i < nr_runs; i++) {
        uint8_t *counts = out.buf;
        uint64_t begin = runs[i].data_begin, nr_blocks = out.len;
        if (i + AHEAD < nr_runs) 
            __builtin_prefetch(counts + (runs[i + AHEAD].data_begin < nr_blocks ? runs[i + AHEAD].data_begin : 0), 1);
        if (begin > nr_blocks || runs[i].length > nr_blocks - begin) {
            refused = i;
            break;
        }
        for (uint64_t block = begin; block < begin + runs[i].length; block++) {
            if (counts[block] < MANY - 1)
                counts[block]++;
            else {
                counts[block] = MANY;
                if (count_many(many, block) < 0) {
                    runs = NULL;
                    break;
                }
            }
        }
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    return runs == NULL ? NULL : PyLong_FromSsize_t(refused);
}

static PyObject *count_leaf(PyObject *module, PyObject *args)
{
    Py_buffer block, out;
    const uint8_t *keys, *values;
    Py_ssize_t nr, refused = -1;
    PyObject *many;
    int failed;
    if (!PyArg_ParseTuple(args, "y*w*O!", &block, &out, &PyDict_Type, &many))
        return NULL;
    nr = entries_of(&block, &keys, &values);
    failed = nr < 0;
    for (Py_ssize_t i = 0; !failed && i < nr; i++) {
        uint8_t *counts = out.buf;
        uint64_t data_block = le64(values + 8 * i) >> TIME_BITS, nr_blocks = out.len;
        if (i + AHEAD < nr) { /* random places in an array that no cache holds: else most of the time goes in waiting */
            uint64_t later = le64(values + 8 * (i + AHEAD)) >> TIME_BITS;
            __builtin_prefetch(counts + (later < nr_blocks ? later : 0), 1);
        }
        if (data_block >= nr_blocks) {
            refused = i;
            break;
        }
        if (counts[data_block] < MANY - 1)
            counts[data_block]++;
        else {
            counts[data_block] = MANY;
            failed = count_many(many, data_block) < 0;
        }
    }
    PyBuffer_Release(&block);
    PyBuffer_Release(&out);
    return failed ? NULL : PyLong_FromSsize_t(refused);
}

static PyObject *nr_with_count(PyObject *module, PyObject *args)
{
    Py_buffer in, of;
    Py_ssize_t nr_runs;
    unsigned char count;
    unsigned long long nr = 0;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*ny*b", &in, &nr_runs, &of, &count))
        return NULL;
    runs = runs_of(&in, nr_runs);
    for (Py_ssize_t i = 0; runs != NULL && i < nr_runs; i++) {
        const uint8_t *counts = of.buf;
        uint64_t nr_blocks = of.len;
        if (i + AHEAD < nr_runs)
            __builtin_prefetch(counts + (runs[i + AHEAD].data_begin < nr_blocks ? runs[i + AHEAD].data_begin : 0));
        for (uint64_t block = runs[i].data_begin, n = runs[i].length; n && block < nr_blocks; block++, n--)
            nr += counts[block] == count;
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&of);
    return runs == NULL ? NULL : PyLong_FromUnsignedLongLong(nr);
}

/* Counts as a bitmap has them: two bits each, the lower one the count's high bit, 3 for all above. */
static PyObject *pack_counts(PyObject *module, PyObject *args)
{
    static const uint8_t PAIR[4] = {0, 2, 1, 3};
    Py_buffer in;
    PyObject *packed;
    if (!PyArg_ParseTuple(args, "y*", &in))
        return NULL;
    packed = PyBytes_FromStringAndSize(NULL, (in.len + 3) / 4);
    if (packed != NULL) {
        const uint8_t *counts = in.buf;
        uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(packed);
        memset(bytes, 0, (in.len + 3) / 4);
        for (Py_ssize_t i = 0; i < in.len; i++)
            bytes[i / 4] |= PAIR[counts[i] > 3 ? 3 : counts[i]] << 2 * (i % 4);
    }
    PyBuffer_Release(&in);
    return packed;
}

/* What of the runs lies on data blocks begin..end, as bytes of runs. */
static PyObject *clip_runs(PyObject *module, PyObject *args)
{
    Py_buffer in;
    Py_ssize_t nr_runs, nr = 0;
    unsigned long long begin, end;
    PyObject *clipped = NULL;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*nKK", &in, &nr_runs, &begin, &end))
        return NULL;
    runs = runs_of(&in, nr_runs);
    if (runs != NULL)
        clipped = PyBytes_FromStringAndSize(NULL, nr_runs * sizeof(run_t));
    if (clipped != NULL) {
        run_t *out = (run_t *)PyBytes_AS_STRING(clipped);
        for (Py_ssize_t i = 0; i < nr_runs; i++) {
            uint64_t first = runs[i].data_begin, after = first + runs[i].length;
            if (first < begin)
                first = begin;
            if (after > end)
                after = end;
            if (first < after)
                out[nr++] = (run_t){runs[i].thin_begin + (first - runs[i].data_begin), first, after - first, runs[i].time};
        }
        _PyBytes_Resize(&clipped, nr * sizeof(run_t));
    }
    PyBuffer_Release(&in);
    return clipped;
}

/* How many runs begin in each slot of `width` data blocks from `begin` on, added to an array of u64. */
static PyObject *histogram(PyObject *module, PyObject *args)
{
    Py_buffer in, out;
    Py_ssize_t nr_runs;
    unsigned long long begin, width;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*nKKw*", &in, &nr_runs, &begin, &width, &out))
        return NULL;
    runs = runs_of(&in, nr_runs);
    if (width == 0) {
        PyErr_SetString(PyExc_ValueError, "slots without width");
        runs = NULL;
    }
    for (Py_ssize_t i = 0; runs != NULL && i < nr_runs; i++) {
        uint64_t *slots = out.buf, nr_slots = out.len / 8;
        if (runs[i].data_begin >= begin && (runs[i].data_begin - begin) / width < nr_slots)
            slots[(runs[i].data_begin - begin) / width]++;
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (runs == NULL)
        return NULL;
    Py_RETURN_NONE;
}

/* -- text */

static const char DIGIT_PAIRS[] = "00010203040506070809101112131415161718192021222324252627282930313233343536373839"
                                  "40414243444546474849505152535455565758596061626364656667686970717273747576777879"
                                  "8081828384858687888990919293949596979899";

static char *put(char *at, const char *text, size_t length)
{
    memcpy(at, text, length);
    return at + length;
}

#define PUT(at, literal) put(at, literal, sizeof literal - 1)

static char *put_number(char *at, uint64_t number)
{
    char digits[20], *first = digits + sizeof digits;
    while (number >= 100) {
        first -= 2;
        memcpy(first, DIGIT_PAIRS + 2 * (number % 100), 2);
        number /= 100;
    }
    if (number >= 10) {
        first -= 2;
        memcpy(first, DIGIT_PAIRS + 2 * number, 2);
    } else
        *--first = (char)('0' + number);
    return put(at, first, digits + sizeof digits - first);
}

static char *put_xml(char *at, const run_t *run)
{
    if (run->length == 1) {
        at = PUT(at, "    <single_mapping origin_block=\"");
        at = put_number(at, run->thin_begin);
        at = PUT(at, "\" data_block=\"");
        at = put_number(at, run->data_begin);
    } else {
        at = PUT(at, "    <range_mapping origin_begin=\"");
        at = put_number(at, run->thin_begin);
        at = PUT(at, "\" data_begin=\"");
        at = put_number(at, run->data_begin);
        at = PUT(at, "\" length=\"");
        at = put_number(at, run->length);
    }
    at = PUT(at, "\" time=\"");
    at = put_number(at, run->time);
    return PUT(at, "\"/>\n");
}

static char *put_human_readable(char *at, const run_t *run)
{
    if (run->length == 1) {
        at = PUT(at, "    ");
        at = put_number(at, run->thin_begin);
        at = PUT(at, " -> ");
        at = put_number(at, run->data_begin);
    } else {
        at = PUT(at, "    (");
        at = put_number(at, run->thin_begin);
        at = PUT(at, "..");
        at = put_number(at, run->thin_begin + run->length - 1);
        at = PUT(at, ") -> (");
        at = put_number(at, run->data_begin);
        at = PUT(at, "..");
        at = put_number(at, run->data_begin + run->length - 1);
        at = PUT(at, ")");
    }
    at = PUT(at, ", ");
    at = put_number(at, run->time);
    return PUT(at, "\n");
}

#define MAX_LINE_BYTES 160 /* 70 of the longest literals, 80 of four numbers */

static PyObject *text_of(PyObject *args, char *(*put_run)(char *, const run_t *))
{
    Py_buffer in;
    Py_ssize_t nr_runs;
    PyObject *text = NULL;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*n", &in, &nr_runs))
        return NULL;
    runs = runs_of(&in, nr_runs);
    if (runs != NULL)
        text = PyBytes_FromStringAndSize(NULL, nr_runs * MAX_LINE_BYTES);
    if (text != NULL) {
        char *begin = PyBytes_AS_STRING(text), *at = begin;
        for (Py_ssize_t i = 0; i < nr_runs; i++)
            at = put_run(at, runs + i);
        _PyBytes_Resize(&text, at - begin);
    }
    PyBuffer_Release(&in);
    return text;
}

static PyObject *xml(PyObject *module, PyObject *args)
{
    return text_of(args, put_xml);
}

static PyObject *human_readable(PyObject *module, PyObject *args)
{
    return text_of(args, put_human_readable);
}

/* -- and back */

static PyObject *expand(PyObject *module, PyObject *args)
{
    Py_buffer in;
    Py_ssize_t nr_runs, i;
    unsigned long long offset, most, nr = 0, done = 0;
    PyObject *keys = NULL, *values = NULL, *all = NULL;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*nnKK", &in, &nr_runs, &i, &offset, &most))
        return NULL;
    runs = runs_of(&in, nr_runs);
    if (runs != NULL && (i < 0 || i > nr_runs || (i < nr_runs && offset >= runs[i].length) || most > PY_SSIZE_T_MAX / 8)) {
        PyErr_SetString(PyExc_ValueError, "begins past the end");
        runs = NULL;
    }
    if (runs != NULL) {
        for (Py_ssize_t k = i; k < nr_runs && nr < most; k++) {
            uint64_t length = runs[k].length - (k == i ? offset : 0);
            nr += length < most - nr ? length : most - nr;
        }
        keys = PyBytes_FromStringAndSize(NULL, 8 * nr);
        values = PyBytes_FromStringAndSize(NULL, 8 * nr);
    }
    if (keys != NULL && values != NULL) {
        uint64_t *key_at = (uint64_t *)PyBytes_AS_STRING(keys), *value_at = (uint64_t *)PyBytes_AS_STRING(values);
        while (done < nr) {
            for (; done < nr && offset < runs[i].length; offset++, done++) {
                key_at[done] = runs[i].thin_begin + offset;
                value_at[done] = (runs[i].data_begin + offset) << TIME_BITS | runs[i].time;
            }
            if (offset == runs[i].length)
                offset = 0, i++;
        }
        all = Py_BuildValue("OOnK", keys, values, i, offset);
    }
    Py_XDECREF(keys);
    Py_XDECREF(values);
    PyBuffer_Release(&in);
    return all;
}

static PyObject *first_wrong(PyObject *module, PyObject *args)
{
    Py_buffer in;
    Py_ssize_t nr_runs, wrong = -1;
    unsigned long long next;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*nK", &in, &nr_runs, &next))
        return NULL;
    runs = runs_of(&in, nr_runs);
    for (Py_ssize_t i = 0; runs != NULL && i < nr_runs; i++) {
        const uint64_t most = (uint64_t)1 << (64 - TIME_BITS);
        if (runs[i].thin_begin < next || runs[i].length == 0 || runs[i].length > UINT64_MAX - runs[i].thin_begin ||
            runs[i].length > most || runs[i].data_begin > most - runs[i].length || runs[i].time >> TIME_BITS) {
            wrong = i;
            break;
        }
        next = runs[i].thin_begin + runs[i].length;
    }
    PyBuffer_Release(&in);
    return runs == NULL ? NULL : PyLong_FromSsize_t(wrong);
}

typedef struct {
    const char *at, *end;
} text_t;

static void skip_blanks(text_t *text)
{
    while (text->at < text->end && (*text->at == ' ' || *text->at == '\n' || *text->at == '\t' || *text->at == '\r'))
        text->at++;
}

static int skip_word(text_t *text, const char *word, size_t length)
{
    if ((size_t)(text->end - text->at) < length || memcmp(text->at, word, length) != 0)
        return 0;
    text->at += length;
    return 1;
}

#define SKIP(text, literal) skip_word(text, literal, sizeof literal - 1)

/* `="123"`, whichever quotes. 0 if it is none or too large. */
static int take_number(text_t *text, uint64_t *number)
{
    char quote;
    const char *first;
    if (text->end - text->at < 3 || *text->at++ != '=')
        return 0;
    quote = *text->at++;
    if (quote != '"' && quote != '\'')
        return 0;
    first = text->at;
    for (*number = 0; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
        unsigned digit = (unsigned)(*text->at - '0');
        if (*number > (UINT64_MAX - digit) / 10)
            return 0;
        *number = *number * 10 + digit;
    }
    return text->at > first && text->at < text->end && *text->at++ == quote;
}

/* One whole element of a mapping, its attributes in any order. 0, and nothing taken, if it is not one. */
static int take_mapping(text_t *text, run_t *run)
{
    enum { THIN = 1, DATA = 2, LENGTH = 4, TIME = 8 };
    text_t at = *text;
    int single, seen = 0;
    if (SKIP(&at, "<single_mapping"))
        single = 1;
    else if (SKIP(&at, "<range_mapping"))
        single = 0;
    else
        return 0;
    run->length = 1;
    for (;;) {
        const char *before = at.at;
        int which;
        uint64_t *into;
        skip_blanks(&at);
        if (SKIP(&at, "/>"))
            break;
        if (at.at == before)
            return 0;
        if (single ? SKIP(&at, "origin_block") : SKIP(&at, "origin_begin"))
            which = THIN, into = &run->thin_begin;
        else if (single ? SKIP(&at, "data_block") : SKIP(&at, "data_begin"))
            which = DATA, into = &run->data_begin;
        else if (!single && SKIP(&at, "length"))
            which = LENGTH, into = &run->length;
        else if (SKIP(&at, "time"))
            which = TIME, into = &run->time;
        else
            return 0;
        if (seen & which || !take_number(&at, into))
            return 0;
        seen |= which;
    }
    if (seen != (single ? THIN | DATA | TIME : THIN | DATA | LENGTH | TIME))
        return 0;
    *text = at;
    return 1;
}

static PyObject *parse_mappings(PyObject *module, PyObject *args)
{
    Py_buffer in, out;
    Py_ssize_t begin, nr_runs, room;
    run_t *runs;
    if (!PyArg_ParseTuple(args, "y*nw*n", &in, &begin, &out, &nr_runs))
        return NULL;
    runs = runs_of(&out, nr_runs);
    room = out.len / (Py_ssize_t)sizeof(run_t);
    if (runs != NULL && (begin < 0 || begin > in.len)) {
        PyErr_SetString(PyExc_ValueError, "begins past the end");
        runs = NULL;
    }
    if (runs != NULL) {
        text_t text = {(const char *)in.buf + begin, (const char *)in.buf + in.len};
        for (;;) {
            skip_blanks(&text);
            if (nr_runs == room || !take_mapping(&text, runs + nr_runs))
                break;
            nr_runs++;
        }
        begin = text.at - (const char *)in.buf;
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    return runs == NULL ? NULL : Py_BuildValue("nn", begin, nr_runs);
}

static PyMethodDef METHODS[] = {
    {"keys_ascend", keys_ascend, METH_VARARGS, NULL},
    {"entries", entries, METH_VARARGS, NULL},
    {"append_runs", append_runs, METH_VARARGS, NULL},
    {"count_runs", count_runs, METH_VARARGS, NULL},
    {"count_leaf", count_leaf, METH_VARARGS, NULL},
    {"nr_with_count", nr_with_count, METH_VARARGS, NULL},
    {"pack_counts", pack_counts, METH_VARARGS, NULL},
    {"clip_runs", clip_runs, METH_VARARGS, NULL},
    {"histogram", histogram, METH_VARARGS, NULL},
    {"xml", xml, METH_VARARGS, NULL},
    {"human_readable", human_readable, METH_VARARGS, NULL},
    {"expand", expand, METH_VARARGS, NULL},
    {"first_wrong", first_wrong, METH_VARARGS, NULL},
    {"parse_mappings", parse_mappings, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_mappings", NULL, -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__mappings(void)
{
    return PyModule_Create(&MODULE);
}
