// Runs a list of stages: forward up, backward down, with the memory that they save kept or shared.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/slab_store.h"
#include "model/stage.h"

namespace squareq {

enum class Keep {
  kNothing,     // forward only: all stages share one region
  kCheckpoint,  // recomputable stages share one region and are run again before their backward
  kAll,         // every stage keeps what it saved
};

// Ids of recomputable stages that keep more than the others (kCheckpoint).
struct KeptStages {
  std::set<std::string> all;        // everything that they saved
  std::set<std::string> attention;  // what attention gave
};

// Time of one stage in one pass, on the device.
struct StageTime {
  const Stage* stage = nullptr;
  bool backward = false;
  double stall = 0.0;    // seconds without its weights
  double seconds = 0.0;  // of its operations, in backward including a recomputation
};

class Runner {
 public:
  Runner(Device& device, SlabStore& store, std::vector<Stage> stages, Keep keep, KeptStages kept = {});

  // Carves what the stages save (see Carver).
  void layout(Carver& carver);
  // Calls every operation of forward and backward, for a rehearsal (see Arena).
  void rehearse();

  // Called after every stage, when its operations have been given to the device.
  using Observer = std::function<void(const Stage& stage)>;

  void forward(const Observer& observer = {});
  void backward(const Observer& observer = {});
  // Brings all weights as a forward and a backward pass do, and computes nothing: what the transfers alone take.
  void transfer();

  // Times of the stages that run from here on, until times() is called.
  void measure() { measuring_ = true; }
  std::vector<StageTime> times();

  const std::vector<Stage>& stages() const { return stages_; }

  // Is a stage computed again before its backward, and its attention with it?
  bool recomputes(const Stage& stage) const;
  bool recomputes_attention(const Stage& stage) const;

 private:
  // Places in the compute stream around a stage.
  struct Mark {
    const Stage* stage = nullptr;
    bool backward = false;
    std::unique_ptr<Event> begin, ready, end;
  };

  bool shares(const Stage& stage) const;
  void run(const Stage& stage, bool backward);
  std::unique_ptr<Event> mark();
  // The stages of one pass and of the one that comes after it, in order.
  void expect(bool backward);

  Device& device_;
  SlabStore& store_;
  std::vector<Stage> stages_;
  Keep keep_;
  KeptStages kept_;
  bool measuring_ = false;
  std::vector<Mark> marks_;
};

}  // namespace squareq
