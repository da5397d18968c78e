//! Singular value decomposition of a product of low rank, `M = B A`, without forming `M`.
//!
//! `B = Q_b R_b` and `Aᵀ = Q_a R_a` (Gram-Schmidt, twice), then `R_b R_aᵀ = U Σ Vᵀ` of the small `k × k` matrix by one-sided Jacobi
//! rotations (Hestenes 1958; Demmel and Veselić 1992: as exact for small singular values as for large ones). `M = (Q_b U) Σ (Q_a V)ᵀ`.
//! All in f64: `O(k² (out + in) + k³)` instead of the `O(out · in · min(out, in))` of the full matrix.

/// `M ≈ left · right`, cut to the largest singular values.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// `U Σ`, `[out, rank]` row by row.
    pub left: Vec<f64>,
    /// `Vᵀ`, `[rank, in]` row by row.
    pub right: Vec<f64>,
    /// All singular values of `M`, largest first.
    pub singular_values: Vec<f64>,
}

/// Vectors of one length, one after the other.
type Columns = Vec<Vec<f64>>;

/// Stops when no pair of columns is further from orthogonal than this, relative to their lengths.
const TOLERANCE: f64 = 1e-14;
/// Ten sweeps are usual.
const SWEEPS: usize = 60;

/// The best approximation of `B A` of this rank (Eckart and Young 1936); `b` `[out, k]`, `a` `[k, in]`, row by row. Where `M` has
/// fewer ranks the rest is zero.
#[must_use]
pub fn truncated(b: &[f64], a: &[f64], k: usize, rank: usize) -> Factors {
    let (out, width) = (b.len() / k.max(1), a.len() / k.max(1));
    let columns: Columns = (0..k).map(|j| (0..out).map(|i| b[i * k + j]).collect()).collect();
    let rows: Columns = a.chunks_exact(width.max(1)).map(<[f64]>::to_vec).collect();
    let ((q_b, r_b), (q_a, r_a)) = (orthogonalised(columns), orthogonalised(rows));
    // column j of R_b R_aᵀ
    let small = (0..k).map(|j| (0..k).map(|i| (0..k).map(|l| r_b[l][i] * r_a[l][j]).sum()).collect()).collect();
    let (scaled, v) = jacobi(small);
    let mut order: Vec<(f64, usize)> = scaled.iter().map(|column| norm(column)).zip(0..).collect();
    order.sort_by(|x, y| y.0.total_cmp(&x.0));
    let kept = rank.min(k);
    let (mut left, mut right) = (vec![0.0; out * rank], vec![0.0; rank * width]);
    for (place, (value, from)) in order.iter().take(kept).enumerate() {
        if *value == 0.0 {
            break; // zero columns stay zero
        }
        for l in 0..k {
            let (u, v) = (scaled[*from][l], v[*from][l]);
            q_b[l].iter().enumerate().for_each(|(i, q)| left[i * rank + place] += q * u);
            q_a[l].iter().enumerate().for_each(|(j, q)| right[place * width + j] += q * v);
        }
    }
    Factors { left, right, singular_values: order.into_iter().map(|(value, _)| value).collect() }
}

/// `Q` with orthonormal columns (or zero ones, where a column depends on those before), and `R` column by column.
fn orthogonalised(columns: Columns) -> (Columns, Columns) {
    let k = columns.len();
    let (mut q, mut r): (Columns, Columns) = (Vec::with_capacity(k), Vec::with_capacity(k));
    for mut column in columns {
        let length = norm(&column);
        let mut entries = vec![0.0; k];
        // the second pass takes away what rounding of the first left
        for _ in 0..2 {
            for (i, q) in q.iter().enumerate() {
                let share = dot(q, &column);
                entries[i] += share;
                column.iter_mut().zip(q).for_each(|(c, q)| *c -= share * q);
            }
        }
        let rest = norm(&column);
        if rest > length * TOLERANCE {
            column.iter_mut().for_each(|c| *c /= rest);
            entries[q.len()] = rest;
        } else {
            column.fill(0.0);
        }
        q.push(column);
        r.push(entries);
    }
    (q, r)
}

/// Rotates pairs of columns until all are orthogonal: `M V = U Σ`. Returns the columns of `U Σ` and of `V`.
fn jacobi(mut columns: Columns) -> (Columns, Columns) {
    let k = columns.len();
    let mut v: Columns = (0..k).map(|j| (0..k).map(|i| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..SWEEPS {
        let mut rotated = false;
        for p in 0..k {
            for q in p + 1..k {
                let (alpha, beta, gamma) =
                    (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]), dot(&columns[p], &columns[q]));
                if gamma.abs() <= TOLERANCE * (alpha * beta).sqrt() {
                    continue;
                }
                rotated = true;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                rotate(&mut columns, p, q, c, c * t);
                rotate(&mut v, p, q, c, c * t);
            }
        }
        if !rotated {
            break;
        }
    }
    (columns, v)
}

fn rotate(columns: &mut Columns, p: usize, q: usize, c: f64, s: f64) {
    let (before, after) = columns.split_at_mut(q);
    for (x, y) in before[p].iter_mut().zip(&mut after[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn noise(count: usize, seed: u64) -> Vec<f64> {
        let mut rng = Rng::new(seed, 1);
        (0..count).map(|_| f64::from(rng.uniform()) - 0.5).collect()
    }

    fn product(left: &[f64], right: &[f64], k: usize) -> Vec<f64> {
        let (rows, width) = (left.len() / k, right.len() / k);
        let entry = |i: usize, j: usize| (0..k).map(|l| left[i * k + l] * right[l * width + j]).sum();
        (0..rows).flat_map(|i| (0..width).map(move |j| entry(i, j))).collect()
    }

    fn distance(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }

    #[test]
    fn full_rank_gives_the_product_back_and_less_loses_the_smallest_values() {
        let (b, a) = (noise(11 * 6, 1), noise(6 * 9, 2));
        let wanted = product(&b, &a, 6);
        let whole = truncated(&b, &a, 6, 6);
        assert!(distance(&product(&whole.left, &whole.right, 6), &wanted) < 1e-12);
        assert!(whole.singular_values.is_sorted_by(|a, b| a >= b));
        for rank in 1..6 {
            let cut = truncated(&b, &a, 6, rank);
            let lost = distance(&product(&cut.left, &cut.right, rank), &wanted);
            let least = whole.singular_values[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
            assert!((lost - least).abs() < 1e-12, "rank {rank}: {lost} {least}");
        }
    }

    #[test]
    fn dependent_columns_and_ranks_beyond_the_matrix_are_zero() {
        let (mut b, a) = (noise(5 * 3, 3), noise(3 * 4, 4));
        for row in b.chunks_exact_mut(3) {
            row[2] = row[0] - 2.0 * row[1];
        }
        let wide = truncated(&b, &a, 3, 5);
        assert!(wide.singular_values[2] < 1e-14, "{:?}", wide.singular_values);
        assert!(distance(&product(&wide.left, &wide.right, 5), &product(&b, &a, 3)) < 1e-13);
        assert!(wide.left.chunks_exact(5).all(|row| row[3..] == [0.0, 0.0]));
        let zero = truncated(&[0.0; 6], &[0.0; 8], 2, 1);
        assert_eq!((zero.left, zero.right, zero.singular_values), (vec![0.0; 3], vec![0.0; 4], vec![0.0; 2]));
    }
}
