//! The `sluicegate` binary: everything is in the library, but the allocator.

/// Gives memory back to the kernel after a burst, which glibc's does not: `limits.memory` would refuse for ever.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    // Without it memory is given back a little later.
    let _ = sluicegate::tunnel::sys::give_memory_back_soon();
    sluicegate::cli::main()
}
