//! The shipped configuration is what `show-config` prints.

#[test]
fn shipped_configuration_is_what_show_config_prints() {
    let shipped = include_str!("../config/config.toml");
    let printed = pgcm::config::render::render(&pgcm::config::Config::default());
    assert!(shipped == printed, "config/config.toml is stale; run: make config");
}
