//! The kernels' source: every `.cu` file of this crate behind what they share.

/// The files in the order of the translation unit: later ones use what earlier ones define.
const FILES: [(&str, &str); 14] = [
    ("cuda/common.cuh", include_str!("common.cuh")),
    ("ops/rows.cu", include_str!("../ops/rows.cu")),
    ("ops/rms_norm.cu", include_str!("../ops/rms_norm.cu")),
    ("ops/layer_norm.cu", include_str!("../ops/layer_norm.cu")),
    ("ops/qk_norm.cu", include_str!("../ops/qk_norm.cu")),
    ("ops/rope.cu", include_str!("../ops/rope.cu")),
    ("ops/swiglu.cu", include_str!("../ops/swiglu.cu")),
    ("ops/gelu.cu", include_str!("../ops/gelu.cu")),
    ("ops/geglu.cu", include_str!("../ops/geglu.cu")),
    ("ops/cross_entropy.cu", include_str!("../ops/cross_entropy.cu")),
    ("ops/attention/tile.cuh", include_str!("../ops/attention/tile.cuh")),
    ("ops/attention/forward.cu", include_str!("../ops/attention/forward.cu")),
    ("ops/attention/backward.cu", include_str!("../ops/attention/backward.cu")),
    ("frozen/nf4.cu", include_str!("../frozen/nf4.cu")),
];

/// The translation unit. `#line` lets a compiler's messages name file and line.
pub fn translation_unit() -> String {
    FILES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

/// The names of all kernels.
#[cfg(test)]
pub fn kernels() -> Vec<&'static str> {
    FILES.iter().flat_map(|(_, text)| kernels_of(text)).collect()
}

/// What follows `KERNEL(` at the beginning of a line.
#[cfg(test)]
pub(crate) fn kernels_of(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(')').next())
}
