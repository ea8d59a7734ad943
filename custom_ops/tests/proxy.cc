// Calls the CPU entry points for a process of another processor: requests on standard input, results on standard output,
// so that the tests of tests/ops run on kernels that an emulator of that processor executes (`make cross`).
//
// request:  u32 length, name, u32 count, then per argument a letter and 8 bytes: 'p' a pointer to so many bytes, which
//           follow; '0' null; 'i' int64; 'd' double; 'f' a double that becomes a float
// response: i32 status, then the bytes of every 'p' as the call left them
// Both ends have the same byte order.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "lipdeploy/entry_points.h"

namespace {

constexpr int32_t kUnknownName = -100;

struct Argument {
  char kind;
  int64_t bits;
  std::vector<char> bytes;
};
using Arguments = std::vector<Argument>;

template <class T>
T value_of(Argument& argument) {
  if constexpr (std::is_pointer_v<T>) {
    return argument.kind == '0' ? nullptr : reinterpret_cast<T>(argument.bytes.data());
  } else if constexpr (std::is_floating_point_v<T>) {
    double value;
    std::memcpy(&value, &argument.bits, sizeof(value));
    return static_cast<T>(value);
  } else {
    return static_cast<T>(argument.bits);
  }
}

template <class... T, size_t... I>
int32_t call(int32_t (*function)(T...), Arguments& arguments, std::index_sequence<I...>) {
  return arguments.size() == sizeof...(T) ? function(value_of<T>(arguments[I])...) : kUnknownName;
}

template <class... T>
std::function<int32_t(Arguments&)> caller(int32_t (*function)(T...)) {
  return [function](Arguments& arguments) { return call(function, arguments, std::index_sequence_for<T...>()); };
}

#define LIPDEPLOY_NAMED(NAME) {#NAME, caller(NAME)},
#define LIPDEPLOY_OPERATORS(T, Element)             \
  LIPDEPLOY_NAMED(lipdeploy_group_sort_##T##_cpu)    \
  LIPDEPLOY_NAMED(lipdeploy_linear_spline_##T##_cpu) \
  LIPDEPLOY_NAMED(lipdeploy_householder_##T##_cpu)
const std::map<std::string, std::function<int32_t(Arguments&)>> kFunctions = {
    LIPDEPLOY_FOR_EACH_TYPE(LIPDEPLOY_OPERATORS)              //
    LIPDEPLOY_NAMED(lipdeploy_linear_spline_scaled_f32_cpu)   //
    LIPDEPLOY_NAMED(lipdeploy_linear_spline_scaled_f64_cpu)   //
    LIPDEPLOY_NAMED(lipdeploy_linear_spline_gradient_f32_cpu) //
    LIPDEPLOY_NAMED(lipdeploy_linear_spline_gradient_f64_cpu) //
    LIPDEPLOY_NAMED(lipdeploy_ops_version)                    //
    LIPDEPLOY_NAMED(lipdeploy_ops_use_instruction_set)        //
};

bool read_bytes(void* to, size_t size) { return size == 0 || std::fread(to, size, 1, stdin) == 1; }

template <class T>
bool read_number(T& number) {
  return read_bytes(&number, sizeof(number));
}

bool read_request(std::string& name, Arguments& arguments) {
  uint32_t length, count;
  if (!read_number(length)) return false;
  name.resize(length);
  if (!read_bytes(name.data(), length) || !read_number(count)) return false;
  arguments.assign(count, {});
  for (Argument& argument : arguments) {
    if (!read_number(argument.kind) || !read_number(argument.bits)) return false;
    argument.bytes.reserve(1);  // an empty array is no null pointer
    if (argument.kind == 'p') argument.bytes.resize(argument.bits);
    if (!read_bytes(argument.bytes.data(), argument.bytes.size())) return false;
  }
  return true;
}

}  // namespace

int main() {
  std::string name;
  Arguments arguments;
  while (read_request(name, arguments)) {
    const auto found = kFunctions.find(name);
    const int32_t status = found == kFunctions.end() ? kUnknownName : found->second(arguments);
    std::fwrite(&status, sizeof(status), 1, stdout);
    for (const Argument& argument : arguments) std::fwrite(argument.bytes.data(), 1, argument.bytes.size(), stdout);
    std::fflush(stdout);
  }
  return 0;
}
