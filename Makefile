# Installs what cargo has built, with links for all names, manual pages,
# completions and contrib/.

PREFIX = /usr/local
SBINDIR = $(PREFIX)/sbin
DATADIR = $(PREFIX)/share
MANDIR = $(DATADIR)/man
DOCDIR = $(DATADIR)/doc/plugd
CONTRIBDIR = $(DATADIR)/plugd
BASHDIR = $(DATADIR)/bash-completion/completions
ZSHDIR = $(DATADIR)/zsh/site-functions
FISHDIR = $(DATADIR)/fish/vendor_completions.d

# The program to install.
BINARY = target/release/plugd
# The names that it stands in for others by; leave out those of programs that you
# have: make install NAMES='daemon-control ucw-daemon-control'.
NAMES = plug-and-play-event-handler netlink-datagram-socket-listen \
	daemon-control ucw-daemon-control mdevd mdevd-netlink mdevd-coldplug
DOCS = README.md CHANGELOG.md LICENSE SECURITY.md
CONTRIB = s6 s6-rc runit openrc busybox dinit mdev mdev.conf

# The files of contrib/, each as $$file, and where it goes as $$to.
EACH_OF_CONTRIB = find $(CONTRIB:%=contrib/%) ! -type d | while read -r file; do \
	to="$(DESTDIR)$(CONTRIBDIR)/$${file\#contrib/}"

build:
	cargo build --locked --release

# Does not build: as root, cargo would leave files of root in target/. Directories may
# not be plugd's alone: they, and what else is in them, stay as they are (install -d
# would change their mode).
install:
	@[ -f "$(BINARY)" ] || { \
		echo "there is no $(BINARY): run make build, or set BINARY" >&2; exit 1; }
	umask 022 && mkdir -p "$(DESTDIR)$(SBINDIR)" \
		"$(DESTDIR)$(DOCDIR)" "$(DESTDIR)$(CONTRIBDIR)" \
		"$(DESTDIR)$(BASHDIR)" "$(DESTDIR)$(ZSHDIR)" "$(DESTDIR)$(FISHDIR)"
	umask 022 && for section in 1 5 7 8; do \
		mkdir -p "$(DESTDIR)$(MANDIR)/man$$section" || exit; done
	install -m 755 "$(BINARY)" "$(DESTDIR)$(SBINDIR)/plugd"
	for page in man/*.[0-9]; do \
		install -m 644 $$page "$(DESTDIR)$(MANDIR)/man$${page##*.}/" || exit; done
	install -m 644 $(DOCS) "$(DESTDIR)$(DOCDIR)/"
	install -m 644 contrib/completions/plugd.bash "$(DESTDIR)$(BASHDIR)/plugd"
	install -m 644 contrib/completions/_plugd "$(DESTDIR)$(ZSHDIR)/_plugd"
	install -m 644 contrib/completions/plugd.fish "$(DESTDIR)$(FISHDIR)/plugd.fish"
	for name in $(NAMES); do \
		ln -sf plugd "$(DESTDIR)$(SBINDIR)/$$name" && \
		ln -sf plugd "$(DESTDIR)$(BASHDIR)/$$name" && \
		ln -sf plugd.fish "$(DESTDIR)$(FISHDIR)/$$name.fish" || exit; done
	umask 022 && $(EACH_OF_CONTRIB); \
		if [ -x "$$file" ]; then mode=755; else mode=644; fi; \
		mkdir -p "$${to%/*}" && install -m $$mode "$$file" "$$to" || exit; done

# With the same settings as the installation.
uninstall:
	rm -f "$(DESTDIR)$(SBINDIR)/plugd" "$(DESTDIR)$(BASHDIR)/plugd" \
		"$(DESTDIR)$(ZSHDIR)/_plugd" "$(DESTDIR)$(FISHDIR)/plugd.fish"
	for page in man/*.[0-9]; do \
		rm -f "$(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}" || exit; done
	for name in $(NAMES); do rm -f "$(DESTDIR)$(SBINDIR)/$$name" \
		"$(DESTDIR)$(BASHDIR)/$$name" "$(DESTDIR)$(FISHDIR)/$$name.fish" || exit; done
	for file in $(DOCS); do rm -f "$(DESTDIR)$(DOCDIR)/$$file" || exit; done
	$(EACH_OF_CONTRIB); rm -f "$$to" || exit; done
# The inner ones first; those in which others have files stay.
	@find $(CONTRIB:%=contrib/%) -depth -type d | while read -r directory; do \
		rmdir "$(DESTDIR)$(CONTRIBDIR)/$${directory#contrib/}" 2>/dev/null; done || :
	@rmdir "$(DESTDIR)$(CONTRIBDIR)" "$(DESTDIR)$(DOCDIR)" 2>/dev/null || :

.PHONY: build install uninstall
