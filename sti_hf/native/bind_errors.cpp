#include <system_error>

#include "bindings.h"
#include "file.h"
#include "streamer.h"

namespace sti {
namespace {

namespace nb = nanobind;

// The classes of sti_hf.native.errors derive from one of Python's; they are looked up when they are raised, so that this
// module can be imported by itself.
void raise_named(const char* name, const char* sentence) {
    try {
        PyErr_SetString(nb::module_::import_("sti_hf.native.errors").attr(name).ptr(), sentence);
    } catch (nb::python_error& not_found) {
        not_found.restore();
    }
}

void raise_os_error(int error, const char* sentence) {
    PyObject* arguments = Py_BuildValue("(is)", error, sentence);
    if (arguments) PyErr_SetObject(PyExc_OSError, arguments);
    Py_XDECREF(arguments);
}

void translate(const std::exception_ptr& error, void*) {
    try {
        std::rethrow_exception(error);
    } catch (const StreamError& caught) {
        raise_named("StreamError", caught.what());
    } catch (const Cancelled& caught) {
        raise_named("Cancelled", caught.what());
    } catch (const FileError& caught) {
        errno = caught.code().value();
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, caught.path.c_str());
    } catch (const std::system_error& caught) {
        raise_os_error(caught.code().value(), caught.what());
    }
}

}  // namespace

void bind_errors() { nb::register_exception_translator(translate); }

}  // namespace sti
