// A fixed set of worker threads that share index ranges. Owned by whoever needs it; there is no global pool.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace squareq {

class ThreadPool {
 public:
  // `threads` in all, the calling thread included; 0 takes one per hardware thread.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(index, worker) once for every index in [0, n), in any order, worker in [0, size()); returns when all
  // are done. The first exception is rethrown. Not reentrant: `work` must not call parallel_for on the same pool, and
  // only one thread may call it.
  void parallel_for(std::int64_t n, const std::function<void(std::int64_t index, int worker)>& work);

 private:
  void worker_loop(int worker);
  void take_indices(int worker);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  const std::function<void(std::int64_t, int)>* work_ = nullptr;
  std::int64_t next_ = 0;
  std::int64_t end_ = 0;
  int busy_ = 0;
  std::uint64_t generation_ = 0;
  bool stopping_ = false;
  std::exception_ptr failure_;
};

}  // namespace squareq
