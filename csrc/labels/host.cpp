// Label maps on the host, for numpy. A separate module, because pybind11 does not support the limited API of _C.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace py = pybind11;

namespace {

template <class T>
using Dense = py::array_t<T, py::array::c_style>;

std::vector<py::ssize_t> shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

// table[label] for each label, and None, or the first label that is not in the table.
template <class Label, class Entry>
py::tuple remap(const Dense<Label>& labels, const Dense<Entry>& table) {
  Dense<Entry> out(shape_of(labels));
  const Label* from = labels.data();
  const Entry* entry = table.data();
  Entry* to = out.mutable_data();
  const int64_t count = labels.size();
  const uint64_t entries = table.size();
  std::optional<int64_t> bad;
  {
    py::gil_scoped_release release;
    for (int64_t i = 0; i < count; ++i) {
      const auto label = static_cast<uint64_t>(static_cast<int64_t>(from[i]));  // negative ones become huge
      if (label >= entries) {
        bad = from[i];
        break;
      }
      to[i] = entry[label];
    }
  }
  return py::make_tuple(out, bad ? py::object(py::int_(*bad)) : py::object(py::none()));
}

template <class Entry>
void bind_remap(py::module_& m) {
  m.def("remap_labels", &remap<uint8_t, Entry>, py::arg().noconvert(), py::arg().noconvert());
  m.def("remap_labels", &remap<uint16_t, Entry>, py::arg().noconvert(), py::arg().noconvert());
  m.def("remap_labels", &remap<int32_t, Entry>, py::arg().noconvert(), py::arg().noconvert());
  m.def("remap_labels", &remap<int64_t, Entry>, py::arg().noconvert(), py::arg().noconvert());
}

py::array_t<int64_t> encode_runs(const py::array_t<uint8_t, py::array::f_style>& mask) {
  const uint8_t* pixel = mask.data();
  const int64_t size = mask.size();
  std::vector<int64_t> counts;
  bool value = false;
  int64_t start = 0;
  for (int64_t i = 0; i < size; ++i)
    if ((pixel[i] != 0) != value) {
      counts.push_back(i - start);
      start = i;
      value = !value;
    }
  counts.push_back(size - start);
  return py::array_t<int64_t>(counts.size(), counts.data());
}

// The counts must be non-negative and add up to height*width; then every run ends inside of the mask.
py::array_t<uint8_t, py::array::f_style> decode_runs(const Dense<int64_t>& counts, int64_t height, int64_t width) {
  int64_t rest = 0;
  bool fits = counts.ndim() == 1 && height >= 0 && width >= 0 && !__builtin_mul_overflow(height, width, &rest);
  for (int64_t i = 0; fits && i < counts.size(); ++i) {
    fits = 0 <= counts.at(i) && counts.at(i) <= rest;
    rest -= fits ? counts.at(i) : 0;
  }
  if (!fits || rest != 0) throw py::value_error("decode_runs: counts must be non-negative and add up to height*width");
  py::array_t<uint8_t, py::array::f_style> mask({height, width});
  uint8_t* pixel = mask.mutable_data();
  for (int64_t i = 0; i < counts.size(); ++i) pixel = std::fill_n(pixel, counts.at(i), uint8_t(i % 2));
  return mask;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Label maps on the host; see fgaseg.kernels.labels";
  bind_remap<uint8_t>(m);
  bind_remap<uint16_t>(m);
  bind_remap<int32_t>(m);
  bind_remap<int64_t>(m);
  m.def("encode_runs", &encode_runs);
  m.def("decode_runs", &decode_runs);
}
