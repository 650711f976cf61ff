//! The picture: commits over time around one failover.

use std::fmt::Write as _;

use crate::{
    commits::{BAR_MS, REACH_MS},
    results::Run,
};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 45.0;

/// An SVG of `run`, readable on light and dark pages alike.
pub(crate) fn picture(run: &Run) -> String {
    let mut svg = String::new();
    let title = format!(
        "Commits per {BAR_MS} ms while the primary moves from {} to {}: none for {:.0} ms",
        run.from, run.to, run.no_commit_ms
    );
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\" role=\"img\">\n\
         <title>{title}</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"14\" fill=\"#222222\">{title}</text>"
    );
    let most = run.commits_per_bar.iter().copied().max().unwrap_or(0);
    let top = round_up(most.max(1));
    shade_gap(&mut svg, run);
    draw_axes(&mut svg, top);
    draw_bars(&mut svg, &run.commits_per_bar, top);
    svg.push_str("</svg>\n");
    svg
}

fn plot_width() -> f64 {
    WIDTH - LEFT - RIGHT
}

fn plot_height() -> f64 {
    HEIGHT - TOP - BOTTOM
}

/// Where `ms` from zero stands.
fn x(ms: f64) -> f64 {
    LEFT + (ms + f64::from(REACH_MS)) / f64::from(2 * REACH_MS) * plot_width()
}

/// Where `count` stands when `top` is the highest.
fn y(count: u32, top: u32) -> f64 {
    TOP + plot_height() * (1.0 - f64::from(count) / f64::from(top))
}

/// The next of 1, 2, 5, 10, 20, 50 ….
fn round_up(count: u32) -> u32 {
    let mut step = 1;
    loop {
        for factor in [1, 2, 5] {
            if factor * step >= count {
                return factor * step;
            }
        }
        step *= 10;
    }
}

fn shade_gap(svg: &mut String, run: &Run) {
    let end = run.no_commit_ms.min(f64::from(REACH_MS));
    let (left, width) = (x(0.0), x(end) - x(0.0));
    let _ = writeln!(
        svg,
        "<rect x=\"{left:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"#fde8d0\"/>",
        plot_height()
    );
}

fn draw_axes(svg: &mut String, top: u32) {
    let bottom = TOP + plot_height();
    for count in [0, top] {
        let at = y(count, top);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#999999\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444444\">{count}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
    }
    for quarter in -4..=4 {
        let ms = f64::from(quarter) * f64::from(REACH_MS) / 4.0;
        let at = x(ms);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{bottom:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#999999\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444444\">{:+.1} s</text>",
            bottom + 5.0,
            bottom + 20.0,
            ms / 1_000.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444444\">\
         time since the last commit before the move</text>",
        LEFT + plot_width() / 2.0,
        HEIGHT - 8.0
    );
}

fn draw_bars(svg: &mut String, bars: &[u32], top: u32) {
    let width = plot_width() * f64::from(BAR_MS) / f64::from(2 * REACH_MS);
    let bottom = TOP + plot_height();
    let mut left = LEFT;
    for &count in bars {
        if count > 0 {
            let at = y(count, top);
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                 fill=\"#336791\"/>",
                width * 0.85,
                bottom - at
            );
        }
        left += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::run;

    #[test]
    fn each_bar_with_commits_is_drawn_and_no_other() {
        let mut run = run(300.0);
        run.commits_per_bar = vec![0; 200];
        let blue = |run: &Run| picture(run).matches("fill=\"#336791\"").count();
        assert_eq!(blue(&run), 0);
        run.commits_per_bar[0] = 4;
        run.commits_per_bar[199] = 1;
        assert_eq!(blue(&run), 2);
    }

    #[test]
    fn the_highest_bar_stays_inside_the_plot() {
        for count in [1, 3, 7, 20, 21, 999] {
            assert!(y(count, round_up(count)) >= TOP);
            assert!(round_up(count) >= count && round_up(count) <= count * 3);
        }
    }

    #[test]
    fn zero_stands_in_the_middle() {
        assert!((x(0.0) - (LEFT + plot_width() / 2.0)).abs() < 1e-9);
        assert!((x(-2_000.0) - LEFT).abs() < 1e-9);
    }

    #[test]
    fn a_gap_longer_than_the_picture_ends_at_its_edge() {
        let svg = picture(&run(60_000.0));
        assert!(svg.contains("width=\"390.0\""), "{svg}");
    }

    #[test]
    fn the_picture_is_well_formed() {
        let svg = picture(&run(300.0));
        let mut reader = quick_xml::Reader::from_str(&svg);
        loop {
            if matches!(reader.read_event().unwrap(), quick_xml::events::Event::Eof) {
                break;
            }
        }
        assert!(svg.contains("from pg01 to pg02: none for 290 ms"), "{svg}");
    }
}
