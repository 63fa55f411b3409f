# Decides whether CUDA kernels are built, and for which devices. Sets MAHAL_WITH_CUDA,
# MAHAL_CUDA_TOOLKIT (version or empty), MAHAL_CUDA_ARCHITECTURES_USED and, as text for info(),
# MAHAL_CUDA_ARCHITECTURES_TEXT.
set(MAHAL_WITH_CUDA false)
set(MAHAL_WITH_EMULATOR false)
set(MAHAL_CUDA_TOOLKIT "")
set(MAHAL_CUDA_ARCHITECTURES_TEXT "")
if(MAHAL_EMULATOR)
  set(MAHAL_WITH_EMULATOR true)
endif()

string(TOUPPER "${MAHAL_CUDA}" cuda_wanted)
if(NOT cuda_wanted MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MAHAL_CUDA: must be AUTO, ON or OFF, got ${MAHAL_CUDA}")
endif()

if(NOT cuda_wanted STREQUAL OFF)
  # What an earlier run did not find may be there now.
  if(DEFINED CMAKE_CUDA_COMPILER AND NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)
  endif()
  # CMake itself looks on PATH and at CUDACXX only.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(MAHAL_NVCC nvcc HINTS ENV CUDA_PATH ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin)
    mark_as_advanced(MAHAL_NVCC)
    if(MAHAL_NVCC)
      set(ENV{CUDACXX} "${MAHAL_NVCC}")
    endif()
  endif()
  # An explicit list, as the check below would otherwise compile for the default of the toolkit.
  set(CMAKE_CUDA_ARCHITECTURES 80)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(MAHAL_WITH_CUDA true)
    set(MAHAL_CUDA_TOOLKIT "${CMAKE_CUDA_COMPILER_VERSION}")
    # CMake before 3.26 does not know that nvcc has C++20 from version 12 on.
    if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
  elseif(cuda_wanted STREQUAL ON)
    message(FATAL_ERROR
      "MAHAL_CUDA=ON, but no working nvcc was found. Put nvcc on PATH or name it in CUDACXX, with a "
      "host compiler that it supports (NVCC_CCBIN), or build with MAHAL_CUDA=OFF.")
  else()
    message(STATUS "No working nvcc: building without CUDA kernels (MAHAL_CUDA=ON makes this an error)")
  endif()
endif()

if(MAHAL_WITH_CUDA)
  if(MAHAL_CUDA_ARCHITECTURES)
    set(MAHAL_CUDA_ARCHITECTURES_USED "${MAHAL_CUDA_ARCHITECTURES}")
  else()
    # Those of a release that this toolkit knows; the last also as PTX, for later devices.
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch OUTPUT_VARIABLE known)
    set(MAHAL_CUDA_ARCHITECTURES_USED "")
    foreach(arch 75 80 86 89 90 100 120)
      if(known MATCHES "compute_${arch}[^0-9]")
        list(APPEND MAHAL_CUDA_ARCHITECTURES_USED ${arch}-real)
        set(last ${arch})
      endif()
    endforeach()
    list(APPEND MAHAL_CUDA_ARCHITECTURES_USED ${last}-virtual)
  endif()
  list(JOIN MAHAL_CUDA_ARCHITECTURES_USED "," MAHAL_CUDA_ARCHITECTURES_TEXT)
endif()
