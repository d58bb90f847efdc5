#include "kernels/base/thread_pool.h"

#include <algorithm>

namespace squareq {

ThreadPool::ThreadPool(int threads) {
  if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int worker = 1; worker < threads; ++worker) {
    workers_.emplace_back([this, worker] { worker_loop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::parallel_for(std::int64_t n, const std::function<void(std::int64_t, int)>& work) {
  if (n <= 0) return;
  if (n == 1 || workers_.empty()) {
    for (std::int64_t i = 0; i < n; ++i) work(i, 0);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    work_ = &work;
    next_ = 0;
    end_ = n;
    busy_ = size();
    failure_ = nullptr;
    ++generation_;
  }
  wake_.notify_all();
  take_indices(0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
  if (failure_) std::rethrow_exception(failure_);
}

void ThreadPool::worker_loop(int worker) {
  std::uint64_t seen = 0;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
    }
    take_indices(worker);
  }
}

void ThreadPool::take_indices(int worker) {
  for (;;) {
    std::int64_t index = 0;
    {
      const std::lock_guard lock(mutex_);
      if (next_ >= end_) {
        if (--busy_ == 0) done_.notify_one();
        return;
      }
      index = next_++;
    }
    try {
      (*work_)(index, worker);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
      next_ = end_;
    }
  }
}

}  // namespace squareq
