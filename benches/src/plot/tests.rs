use super::*;

fn all() -> [Plot; 3] {
    [
        Plot::Bars(Bars {
            title: "a < b & c".into(),
            bars: vec![
                (
                    "one".into(),
                    vec![("kick".into(), 10.0), ("copy".into(), 30.0)],
                ),
                ("none".into(), vec![]),
            ],
        }),
        Plot::Lines(Lines {
            title: "lines".into(),
            x: Axis::logarithmic("pages"),
            y: Axis::linear("us"),
            series: vec![("one".into(), vec![(16.0, 1.0), (4096.0, 90.0)])],
        }),
        Plot::Timeline(Timeline {
            title: "timeline".into(),
            events: vec![
                ("killed".into(), vec![0.0]),
                ("answer".into(), vec![12.0, 15.0]),
            ],
        }),
    ]
}

#[test]
fn every_drawing_is_one_whole_element_and_loads_nothing() {
    for plot in all() {
        let svg = plot.to_svg();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(!svg.contains("href") && !svg.contains("<script"));
    }
}

#[test]
fn names_do_not_become_elements() {
    let svg = all()[0].to_svg();
    assert!(svg.contains("a &lt; b &amp; c"));
}

#[test]
fn a_bar_has_all_its_parts() {
    let svg = all()[0].to_svg();
    assert!(svg.contains("one, kick: 10.0 us") && svg.contains("one, copy: 30.0 us"));
    assert!(svg.contains(">40.0 us<"));
}
