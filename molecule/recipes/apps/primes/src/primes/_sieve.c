#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Return the number of primes below a limit. */
static PyObject *count(PyObject *self, PyObject *argument) {
    long limit = PyLong_AsLong(argument);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    if (limit < 3)
        return PyLong_FromLong(0);
    char *composite = PyMem_Calloc(limit, 1);
    if (composite == NULL)
        return PyErr_NoMemory();
    long found = 0;
    for (long number = 2; number < limit; number++) {
        if (composite[number])
            continue;
        found++;
        for (long multiple = 2 * number; multiple < limit; multiple += number)
            composite[multiple] = 1;
    }
    PyMem_Free(composite);
    return PyLong_FromLong(found);
}

static PyMethodDef methods[] = {{"count", count, METH_O, "Return the number of primes below a limit."}, {NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_sieve", NULL, -1, methods};

PyMODINIT_FUNC PyInit__sieve(void) {
    return PyModule_Create(&module);
}
