#pragma once

#include <cstdarg>
#include <cstdio>

namespace fused_attention {

// What a launch says instead of throwing: a kernel handed a problem that it cannot do returns a
// reason, and the caller (binding.cpp, then Python) raises it. Nothing below falls back.
struct Status {
  bool ok = true;
  char message[256] = {};

  static Status error(const char* format, ...) {
    Status status;
    status.ok = false;
    va_list args;
    va_start(args, format);
    std::vsnprintf(status.message, sizeof(status.message), format, args);
    va_end(args);
    return status;
  }
};

}  // namespace fused_attention
