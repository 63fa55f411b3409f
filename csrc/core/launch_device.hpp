// The CUDA device that the kernels of a call go to.
#pragma once

namespace mahal {

// Index for the launches of this thread: select_route sets it from the arrays of the call, and
// simt::launch makes it the current device for as long as the launch takes.
inline thread_local constinit int launch_device = 0;

}  // namespace mahal
