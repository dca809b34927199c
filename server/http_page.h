// SPDX-License-Identifier: Apache-2.0
// One page of the metrics listener: a path, and what makes its content when it is asked for.
#ifndef GEMMD_SERVER_HTTP_PAGE_H_
#define GEMMD_SERVER_HTTP_PAGE_H_

#include <functional>
#include <string>

namespace gemmd {

struct HttpPage {
  std::string path;                   // "/statusz".
  std::string content_type;           // With its charset.
  bool local_only = true;             // For callers on this machine alone; others get 403.
  std::function<std::string()> body;  // Called on a thread of the listener, any number of times at once.
};

}  // namespace gemmd

#endif  // GEMMD_SERVER_HTTP_PAGE_H_
