// Behind all kernels and the table `KNOWN` of them, which emulator.rs writes: finds one by its name and runs it.

/// Null, or what went wrong. `grid` has two numbers, `values` points at the arguments one by one, as `cuLaunchKernel` takes them.
extern "C" const char *cuda_on_cpu_launch(const char *name, const unsigned *grid, unsigned threads, size_t shared, void **values,
                                          int reversed) {
    for (const cuda_on_cpu::Known &known : KNOWN)
        if (strcmp(known.name, name) == 0)
            return cuda_on_cpu::launch(known, grid, threads, shared, values, reversed != 0);
    return "there is no kernel of this name";
}
