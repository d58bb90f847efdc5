// Brings the weights of a stage from a slab to the device.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/prefetch_queue.h"
#include "engine/slab_source.h"
#include "io/slab.h"
#include "kernels/device.h"
#include "model/stage.h"

namespace squareq {

// Where the weights of the stages are while they are not used.
struct Residency {
  std::vector<std::string> streamed;  // ids of stages whose weights stay on the host
  // Of stages that are not streamed: copies of their linears' weights stay beside them, as products read them (see
  // Ops::prepared_form). Those of stages that are streamed are ignored.
  std::vector<std::string> prepared;
  std::size_t slots = 4;  // of device memory that the streamed ones share; see slot_bytes
  HostPath path = HostPath::kAuto;
  std::size_t readers = 0;  // threads; 0: as many as copies at full speed take
  // Bytes of the slab that the page cache can hold; unset: what is available, less a reserve.
  std::optional<std::size_t> page_cache;
};

class SlabStore {
 public:
  // Weights that are not streamed stay in device memory; a device that reads host memory reads them where the slab is
  // mapped.
  SlabStore(const Slab& slab, Device& device, Residency residency = {});

  // Carves memory for the weights of the stages, and for the copies of those that are prepared.
  void layout(Carver& carver, const std::vector<Stage>& stages);

  // Throws FileError if the slab changed since it was opened. Called before and after every pass, since weights may be
  // read where the slab is mapped.
  void check_unchanged() const { file_.check_unchanged(); }
  // The stages that will be acquired from here on, in order: their weights start to come. Calls check_unchanged().
  void expect(const std::vector<const Stage*>& stages);
  // Binds the weights of a stage for operations until release(stage). The first time a block is read its checksum is
  // verified, and then copies of its weights are written if it is to have some. Throws FormatError if the block or a
  // tensor is damaged, missing or of another shape, FileError if the file cannot be read.
  void acquire(const Stage& stage);
  void release(const Stage& stage);
  // Binds views with the shapes of the weights, for a rehearsal.
  void bind_shapes(const Stage& stage) const;

  // How weights come ("pinned ring"); empty if they are read where they are mapped. After layout.
  std::string path_name() const;
  // Bytes brought to the device so far, those on their way included.
  double bytes_brought() const;

 private:
  bool is_streamed(const std::string& id) const;
  bool in_place(const std::string& id) const;
  void bind_copies(const std::string& id, const std::vector<Weight*>& linears) const;
  void add_parts(const std::string& id, std::size_t capacity);
  void start();

  const Slab& slab_;
  Device& device_;
  Residency residency_;
  RandomAccessFile file_;
  std::vector<SlabPart> parts_;
  std::map<std::string, std::vector<std::size_t>> parts_of_;  // by stage
  std::set<std::string> verified_;                            // of the stages read in place
  std::vector<View> homes_, slots_;                           // homes_ as parts_, empty for streamed ones
  struct Copies {
    std::vector<View> of_linears;  // as take_prepared
    bool written = false;
  };
  std::map<std::string, Copies> copies_;  // by stage that is prepared
  // Destroyed in reverse: the queue uses the source.
  std::unique_ptr<SlabSource> source_;
  std::unique_ptr<PrefetchQueue> queue_;
};

// Carves the copies of a stage's weights that products read, one for each linear in order; an empty view where they
// read what is stored.
std::vector<View> take_prepared(Carver& carver, const Ops& ops, const Slab& slab, const Stage& stage);

// Bytes of one slot where these stages are streamed. Large blocks are cut between tensors, so that a slot holds half
// of the largest.
std::size_t slot_bytes(const Slab& slab, const std::vector<std::string>& streamed);

}  // namespace squareq
