// Results of slow work on a list of inputs, in order, computed by other threads ahead of need.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <future>
#include <utility>

namespace squareq {

template <class Result>
class ReadAhead {
 public:
  // work(i) for i in [0, count), at most `window` of them begun and not yet taken.
  ReadAhead(std::size_t count, std::size_t window, std::function<Result(std::size_t)> work)
      : count_(count), work_(std::move(work)) {
    while (begun_ < count_ && begun_ < window) begin();
  }

  // The result of the next index, or the exception of its work. To be called `count` times.
  Result next() {
    std::future<Result> first = std::move(pending_.front());
    pending_.pop_front();
    Result result = first.get();
    if (begun_ < count_) begin();
    return result;
  }

 private:
  void begin() {
    pending_.push_back(std::async(std::launch::async, [this, index = begun_] { return work_(index); }));
    ++begun_;
  }

  std::size_t count_;
  std::size_t begun_ = 0;
  std::function<Result(std::size_t)> work_;
  std::deque<std::future<Result>> pending_;  // last, so that all are waited for before the rest goes
};

}  // namespace squareq
