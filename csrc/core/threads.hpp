// The thread pool of the process.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "mahal/export.hpp"

namespace mahal {

namespace detail {

using TaskFunction = void (*)(void* body, std::int64_t task, int worker);

// Exported for the tests of the pool, which run in the Python module.
MAHAL_API void run_tasks(int threads, std::int64_t tasks, TaskFunction function, void* body);

}  // namespace detail

// Number of threads for one call: `requested`, or the default when that is 0. Throws ValueError
// when it is negative or above max_threads.
int resolve_threads(const char* op, int requested);

// Calls body(task, worker) once for every task in [0, tasks), from at most `threads` threads, the
// caller among them; worker is below `threads` and no two tasks with one worker run at once.
// Which worker gets which task changes from run to run, so tasks must be cut by the size of the
// problem alone and write to places of their own. Inside a task, further calls run in place. The
// first exception stops the pickup of tasks and is thrown here once the running ones have ended.
template <class F>
void parallel_for(int threads, std::int64_t tasks, F&& body) {
  using Body = std::remove_reference_t<F>;
  detail::run_tasks(
      threads, tasks,
      [](void* function, std::int64_t task, int worker) {
        (*static_cast<Body*>(function))(task, worker);
      },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

}  // namespace mahal
