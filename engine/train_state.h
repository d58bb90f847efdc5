// Everything that a run needs to go on as if it had never stopped, in one file.
//
// It is a safetensors file, written atomically: the adapters, their moments and average, the losses so far, and, in
// its metadata, where the run is and what it belongs to. Its last tensor is the SHA-256 of all before it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/trainer.h"
#include "io/safetensors.h"

namespace squareq {

struct TrainState {
  TrainProgress progress;
  std::string config;                         // as to_json gives it
  std::string model;                          // identity of the slab
  std::string data;                           // identity of the training set
  std::string kernel_choices;                 // of the device's operations
  std::map<std::string, std::uint64_t> logs;  // bytes of each log file, by its name, that belong to the steps done
};

// Throws FileError. Of the adapters, no more than 16 MiB at a time are on the host.
void save_state(const std::string& path, Device& device, const LoraSet& lora, const TrainState& state);

class StateFile {
 public:
  // Reads and checks all of the file. Throws FileError, and FormatError if it is not an intact state of this version.
  explicit StateFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const TrainState& state() const { return state_; }
  // Gives the adapters the values of the state. Throws FormatError if it is one of other adapters; they are then as
  // before.
  void restore(Device& device, const LoraSet& lora) const;

 private:
  SafetensorsFile file_;
  TrainState state_;
};

// "FOLDER/NAME-000500.state"
std::string state_path(const std::string& folder, const std::string& name, std::int64_t step);

// The states of the runs of this name, that of the highest step first.
struct SavedState {
  std::int64_t step = 0;
  std::string path;
};
std::vector<SavedState> find_states(const std::string& folder, const std::string& name);

}  // namespace squareq
