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
        if (i + AHEAD < nr_runs) /* random places in an array that no cache holds: half of the time would go in waiting */
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

static PyMethodDef METHODS[] = {
    {"keys_ascend", keys_ascend, METH_VARARGS, NULL},
    {"entries", entries, METH_VARARGS, NULL},
    {"append_runs", append_runs, METH_VARARGS, NULL},
    {"count_runs", count_runs, METH_VARARGS, NULL},
    {"nr_with_count", nr_with_count, METH_VARARGS, NULL},
    {"pack_counts", pack_counts, METH_VARARGS, NULL},
    {"xml", xml, METH_VARARGS, NULL},
    {"human_readable", human_readable, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_mappings", NULL, -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__mappings(void)
{
    return PyModule_Create(&MODULE);
}
