//! Layouts of tensors in their data, and walks over several of them at once.

/// Where a tensor's elements are in its data: element i is at `offset + Σ iₐ · strides[a]`.
///
/// A stride of 0 repeats an element, so that broadcasts are views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Distance of neighbours along each axis, in elements.
    pub strides: Vec<usize>,
    /// Position of the first element.
    pub offset: usize,
}

/// Elements of a row: `start`, `start + step`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Position of the first.
    pub start: usize,
    /// Distance of neighbours.
    pub step: usize,
}

impl Layout {
    /// Row-major layout of a shape from position 0.
    pub fn packed(shape: Vec<usize>) -> Layout {
        let mut strides = vec![1; shape.len()];
        for a in (1..shape.len()).rev() {
            strides[a - 1] = strides[a] * shape[a];
        }
        Layout { shape, strides, offset: 0 }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether elements follow each other in row-major order without gaps.
    pub fn is_packed(&self) -> bool {
        let mut wanted = 1;
        for (&n, &s) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && s != wanted {
                return false;
            }
            wanted *= n;
        }
        true
    }

    /// Layout without its outermost axis, at position `at` along it.
    pub fn inner(&self, at: usize) -> Layout {
        Layout {
            shape: self.shape[1..].to_vec(),
            strides: self.strides[1..].to_vec(),
            offset: self.offset + at * self.strides[0],
        }
    }
}

/// Rows of one or more layouts of equal shape: neighbouring axes are joined where all of them allow it,
/// so that rows are as long as they can be.
#[derive(Clone, Debug)]
pub struct Rows<const N: usize> {
    outer: Vec<usize>,
    outer_strides: Vec<[usize; N]>,
    offsets: [usize; N],
    /// Elements of a row.
    pub len: usize,
    /// Distance of neighbours in a row, for each layout.
    pub steps: [usize; N],
}

impl<const N: usize> Rows<N> {
    /// Rows of layouts of equal shape.
    pub fn new(layouts: [&Layout; N]) -> Rows<N> {
        let shape: &[usize] = layouts.first().map_or(&[], |l| &l.shape);
        // Axes from the innermost: (extent, strides).
        let mut axes: Vec<(usize, [usize; N])> = Vec::new();
        for a in (0..shape.len()).rev().filter(|&a| shape[a] != 1) {
            let strides = layouts.map(|l| l.strides[a]);
            match axes.last_mut() {
                Some((n, inner)) if (0..N).all(|i| strides[i] == inner[i] * *n) => *n *= shape[a],
                _ => axes.push((shape[a], strides)),
            }
        }
        let (len, steps) = if axes.is_empty() { (1, [1; N]) } else { axes.remove(0) };
        axes.reverse();
        Rows {
            outer: axes.iter().map(|a| a.0).collect(),
            outer_strides: axes.iter().map(|a| a.1).collect(),
            offsets: layouts.map(|l| l.offset),
            len,
            steps,
        }
    }

    /// Positions of the first elements of a row.
    pub fn starts(&self, row: usize) -> [usize; N] {
        let mut at = self.offsets;
        let mut rest = row;
        for (&n, strides) in self.outer.iter().zip(&self.outer_strides).rev() {
            let i = rest % n;
            rest /= n;
            for (p, s) in at.iter_mut().zip(strides) {
                *p += i * s;
            }
        }
        at
    }

    /// Runs of the elements `from..` of a row.
    pub fn runs(&self, row: usize, from: usize) -> [Run; N] {
        let starts = self.starts(row);
        std::array::from_fn(|i| Run { start: starts[i] + from * self.steps[i], step: self.steps[i] })
    }
}

/// Elements that are worth a task of their own.
pub const GRAIN: usize = 16 * 1024;

/// Fills `out` (row-major) part by part, in parallel when it is large: `fill(part, runs)` gets a part of a
/// row and where its elements are in each layout.
///
/// The parts do not depend on the number of threads. `out` must have as many elements as the layouts.
pub fn fill_rows<T: Send, const N: usize>(
    layouts: [&Layout; N],
    out: &mut [T],
    fill: impl Fn(&mut [T], [Run; N]) + Sync,
) {
    use rayon::prelude::*;
    let rows = Rows::new(layouts);
    if out.is_empty() || rows.len == 0 {
        return;
    }
    let piece = |first: usize, part: &mut [T]| {
        let mut done = 0;
        while done < part.len() {
            let (row, from) = ((first + done) / rows.len, (first + done) % rows.len);
            let n = (rows.len - from).min(part.len() - done);
            fill(&mut part[done..done + n], rows.runs(row, from));
            done += n;
        }
    };
    if out.len() < 2 * GRAIN {
        piece(0, out);
    } else {
        out.par_chunks_mut(GRAIN).enumerate().for_each(|(i, part)| piece(i * GRAIN, part));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count<const N: usize>(rows: &Rows<N>) -> usize {
        rows.outer.iter().product()
    }

    #[test]
    fn rows_join_axes_where_all_layouts_allow_it() {
        let a = Layout::packed(vec![2, 3, 4]);
        let rows = Rows::new([&a, &a]);
        assert_eq!((rows.len, count(&rows)), (24, 1));
        let broadcast = Layout { shape: vec![2, 3, 4], strides: vec![0, 4, 1], offset: 5 };
        let rows = Rows::new([&a, &broadcast]);
        assert_eq!((rows.len, count(&rows)), (12, 2));
        assert_eq!(rows.starts(1), [12, 5]);
        let column = Layout { shape: vec![2, 3, 4], strides: vec![3, 1, 0], offset: 0 };
        let rows = Rows::new([&a, &column]);
        assert_eq!((rows.len, count(&rows), rows.steps), (4, 6, [1, 0]));
        assert_eq!(rows.runs(4, 2), [Run { start: 18, step: 1 }, Run { start: 4, step: 0 }]);
    }

    #[test]
    fn packed_ignores_extents_of_one() {
        let l = Layout { shape: vec![2, 1, 3], strides: vec![3, 77, 1], offset: 4 };
        assert!(l.is_packed());
        assert!(!Layout { shape: vec![2, 3], strides: vec![1, 2], offset: 0 }.is_packed());
    }
}
