// Hammers the thread pool. Runs plain and under the thread sanitizer, which cannot follow a child
// that starts threads after the fork of a process with threads: there the fork tests are left out.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/threads.hpp"
#include "mahal/context.hpp"
#include "mahal/error.hpp"

namespace {

int passed = 0;
int failed = 0;

void check(bool good, const std::string& what) {
  if (good) {
    ++passed;
  } else {
    ++failed;
    std::printf("FAILED: %s\n", what.c_str());
  }
}

// Keeps a task busy long enough for workers to join.
void linger() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

// Every task once, in a place of its own; the result is visible to the caller without atomics.
bool squares_are_right(int threads, std::int64_t tasks) {
  std::vector<std::int64_t> squares(static_cast<std::size_t>(tasks), -1);
  mahal::parallel_for(threads, tasks,
                      [&](std::int64_t task, int) { squares[task] += 1 + task * task; });
  for (std::int64_t task = 0; task < tasks; ++task) {
    if (squares[task] != task * task) return false;
  }
  return true;
}

void test_every_task_runs_once() {
  for (int threads : {1, 2, 3, 8}) {
    for (std::int64_t tasks : {0, 1, 2, 7, 1000}) {
      check(squares_are_right(threads, tasks), "every task runs once: " + std::to_string(threads) +
                                                   " threads, " + std::to_string(tasks) + " tasks");
    }
  }
}

// Scratch memory per worker needs that no two tasks of one worker overlap.
void test_workers_are_exclusive() {
  constexpr int threads = 4;
  std::vector<int> scratch(threads, 0);  // not atomic: the sanitizer sees two owners at once
  std::atomic<bool> in_range{true};
  mahal::parallel_for(threads, 400, [&](std::int64_t, int worker) {
    if (worker < 0 || worker >= threads) {
      in_range = false;
      return;
    }
    ++scratch[worker];
    linger();
  });
  check(in_range, "worker index is below the number of threads");
  check(std::accumulate(scratch.begin(), scratch.end(), 0) == 400,
        "tasks counted per worker add up");
}

void test_work_is_shared() {
  std::vector<int> counts(2, 0);
  mahal::parallel_for(2, 200, [&](std::int64_t, int worker) {
    ++counts[worker];
    linger();
  });
  check(counts[0] > 0 && counts[1] > 0, "two threads share 200 sleeping tasks");
}

void test_nested_calls_run_in_place() {
  std::atomic<int> inner_tasks{0};
  std::atomic<bool> in_place{true};
  mahal::parallel_for(4, 32, [&](std::int64_t, int) {
    const auto outer_thread = std::this_thread::get_id();
    mahal::parallel_for(4, 8, [&](std::int64_t, int worker) {
      ++inner_tasks;
      if (worker != 0 || std::this_thread::get_id() != outer_thread) in_place = false;
    });
  });
  check(inner_tasks == 32 * 8, "nested tasks all run");
  check(in_place, "nested tasks run on the thread that asks");
  check(squares_are_right(4, 100), "the pool works after nested calls");
}

void test_callers_from_many_threads() {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&wrong, caller] {
      for (int round = 0; round < 200; ++round) {
        if (!squares_are_right(1 + (caller + round) % 5, 1 + (7 * round) % 90)) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  check(wrong == 0, "callers from several threads each get their own result");
}

void test_exceptions_reach_the_caller() {
  for (int threads : {1, 4}) {
    for (std::int64_t bad : {0, 37, 99}) {
      std::string message;
      try {
        mahal::parallel_for(threads, 100, [&](std::int64_t task, int) {
          if (task == bad) throw std::runtime_error("task " + std::to_string(task));
        });
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      check(message == "task " + std::to_string(bad), "the exception of a task reaches the caller");
    }
  }
  std::atomic<int> after_failure{0};
  try {
    mahal::parallel_for(2, 100000, [&](std::int64_t task, int) {
      if (task == 0) throw std::runtime_error("stop");
      ++after_failure;
      linger();
    });
  } catch (const std::runtime_error&) {
  }
  check(after_failure < 99999, "a failure stops the pickup of tasks");
  std::atomic<int> caught{0};
  mahal::parallel_for(4, 16, [&](std::int64_t, int) {
    try {
      mahal::parallel_for(4, 4, [](std::int64_t, int) { throw std::runtime_error("inner"); });
    } catch (const std::runtime_error&) {
      ++caught;
    }
  });
  check(caught == 16, "exceptions of nested calls reach their tasks");
  check(squares_are_right(4, 1000), "the pool works after exceptions");
}

#if !defined(__SANITIZE_THREAD__)

bool child_succeeds(int (*body)()) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a pool that waits for workers lost in the fork would hang for ever
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void test_fork() {
  check(squares_are_right(4, 100), "the pool works before fork");
  for (int round = 0; round < 5; ++round) {
    check(child_succeeds([] { return squares_are_right(4, 500) ? 0 : 1; }),
          "the child of a fork has a working pool");
  }
  check(child_succeeds(
            [] { return child_succeeds([] { return squares_are_right(3, 50) ? 0 : 1; }) ? 0 : 1; }),
        "so has its child");

  // Fork while other threads are inside the pool.
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::thread other([&] {
    while (!stop) {
      if (!squares_are_right(3, 64)) ++wrong;
    }
  });
  for (int round = 0; round < 10; ++round) {
    check(child_succeeds([] { return squares_are_right(4, 500) ? 0 : 1; }),
          "a fork beside a running job has a working pool");
  }
  stop = true;
  other.join();
  check(wrong == 0, "a running job does not notice forks");
}

#endif

template <class Action>
bool refuses(Action&& action) {
  try {
    action();
  } catch (const mahal::ValueError&) {
    return true;
  }
  return false;
}

void test_thread_counts() {
  check(refuses([] { mahal::resolve_threads("op", -1); }), "negative threads are refused");
  check(refuses([] { mahal::resolve_threads("op", mahal::max_threads + 1); }),
        "too many threads are refused");
  check(refuses([] { mahal::set_default_threads(0); }), "a default of 0 is refused");
  mahal::set_default_threads(3);
  check(mahal::resolve_threads("op", 0) == 3, "0 threads mean the default");
  check(mahal::resolve_threads("op", 2) == 2, "a given number of threads is taken");
}

}  // namespace

int main() {
  test_every_task_runs_once();
  test_workers_are_exclusive();
  test_work_is_shared();
  test_nested_calls_run_in_place();
  test_callers_from_many_threads();
  test_exceptions_reach_the_caller();
#if !defined(__SANITIZE_THREAD__)
  test_fork();
#endif
  test_thread_counts();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
