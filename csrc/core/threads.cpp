#include "core/threads.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "mahal/context.hpp"
#include "mahal/error.hpp"

namespace mahal {
namespace {

// One call of run_tasks; lives on the stack of the caller and in the list of the pool.
struct Job {
  detail::TaskFunction function = nullptr;
  void* body = nullptr;
  std::int64_t tasks = 0;
  std::atomic<std::int64_t> next_task{0};

  // The rest is guarded by Pool::mutex.
  int seats = 0;        // workers that may still join
  int next_worker = 1;  // index of the next one; the caller is 0
  int running = 0;      // workers inside
  std::exception_ptr error;
  std::condition_variable all_left;
  Job* next = nullptr;
};

thread_local bool inside_task = false;

// Marks the thread for the time it works on a job, so that nested calls run in place.
class TaskScope {
 public:
  TaskScope() { inside_task = true; }
  ~TaskScope() { inside_task = false; }
  TaskScope(const TaskScope&) = delete;
  TaskScope& operator=(const TaskScope&) = delete;
};

// Workers serve whichever job has a free seat, so callers from several threads share one set of
// workers and never wait for each other. The workers sleep forever once the process has no more
// work, and are not joined at exit: nothing they hold outlives a job.
class Pool {
 public:
  void run(Job& job) {
    const bool one_helper = job.seats == 1;
    {
      std::lock_guard lock(mutex_);
      add_workers(job.seats);
      job.next = jobs_;
      jobs_ = &job;
    }
    if (one_helper) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
    work(job, 0);
    std::unique_lock lock(mutex_);
    remove(job);
    job.all_left.wait(lock, [&] { return job.running == 0; });
  }

 private:
  void work(Job& job, int worker) {
    TaskScope scope;
    try {
      for (;;) {
        const std::int64_t task = job.next_task.fetch_add(1, std::memory_order_relaxed);
        if (task >= job.tasks) return;
        job.function(job.body, task, worker);
      }
    } catch (...) {
      job.next_task.store(job.tasks, std::memory_order_relaxed);
      std::lock_guard lock(mutex_);
      if (!job.error) job.error = std::current_exception();
    }
  }

  void remove(Job& job) {
    for (Job** link = &jobs_; *link != nullptr; link = &(*link)->next) {
      if (*link == &job) {
        *link = job.next;
        return;
      }
    }
  }

  Job* job_with_seat() const {
    for (Job* job = jobs_; job != nullptr; job = job->next) {
      if (job->seats > 0 && job->next_task.load(std::memory_order_relaxed) < job->tasks) return job;
    }
    return nullptr;
  }

  void add_workers(int wanted) {
    while (workers_ < wanted) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        return;  // the system has no more threads to give: the caller and the others do the work
      }
      ++workers_;
    }
  }

  [[noreturn]] void serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(lock, [&] { return (job = job_with_seat()) != nullptr; });
      --job->seats;
      const int worker = job->next_worker++;
      ++job->running;
      lock.unlock();
      work(*job, worker);
      lock.lock();
      if (--job->running == 0) job->all_left.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  Job* jobs_ = nullptr;
  int workers_ = 0;
};

alignas(Pool) unsigned char pool_storage[sizeof(Pool)];

// Never destroyed: workers may still wait on it while the process ends.
Pool& make_pool() { return *::new (static_cast<void*>(pool_storage)) Pool; }

Pool& pool() {
  static Pool& instance = [&]() -> Pool& {
    Pool& made = make_pool();
    // A child of fork has no workers and perhaps a locked mutex: it starts afresh in the same
    // place. Nothing is allocated here, as another thread may have held the heap when it forked.
    pthread_atfork(nullptr, nullptr, [] { make_pool(); });
    return made;
  }();
  return instance;
}

}  // namespace

int resolve_threads(const char* op, int requested) {
  if (requested < 0 || requested > max_threads) {
    throw_value_error(op, "threads", "must be 0 (default) to " + std::to_string(max_threads),
                      std::to_string(requested));
  }
  return requested == 0 ? default_threads() : requested;
}

void detail::run_tasks(int threads, std::int64_t tasks, TaskFunction function, void* body) {
  if (inside_task || threads <= 1 || tasks <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) function(body, task, 0);
    return;
  }
  Job job;
  job.function = function;
  job.body = body;
  job.tasks = tasks;
  job.seats = static_cast<int>(std::min<std::int64_t>(threads, tasks)) - 1;
  pool().run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace mahal
