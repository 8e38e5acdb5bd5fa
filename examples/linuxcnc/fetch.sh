#!/bin/sh
# Makes examples/linuxcnc/documents/ from Debian's package linuxcnc-doc-en, as documents.txt says.
# Uses the installed package; else installs it (as root) or unpacks it here into package/.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "fetch.sh: $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null 2>&1 || fail "$1 is missing; install the package $2"
}

manual=
for folder in /usr/share/doc/linuxcnc package/usr/share/doc/linuxcnc; do
    if [ -f "$folder/LinuxCNC_Documentation.pdf" ]; then
        manual=$folder
        break
    fi
done

if [ -z "$manual" ]; then
    need apt-get apt
    if [ "$(id -u)" = 0 ]; then
        apt-get install -y --no-install-recommends linuxcnc-doc-en
        manual=/usr/share/doc/linuxcnc
    else
        rm -rf package
        mkdir package
        (cd package && apt-get download linuxcnc-doc-en && dpkg -x ./*.deb . && rm -f ./*.deb)
        manual=package/usr/share/doc/linuxcnc
    fi
    [ -f "$manual/LinuxCNC_Documentation.pdf" ] || fail "linuxcnc-doc-en holds no LinuxCNC_Documentation.pdf"
fi

need qpdf qpdf
need pdftotext poppler-utils
need pdftohtml poppler-utils

new=documents.new
rm -rf "$new"
mkdir "$new"
trap 'rm -rf "$new"' EXIT

trim() {
    printf '%s' "$1" | sed 's/^ *//; s/ *$//'
}

grep -v -e '^#' -e '^ *$' documents.txt | while IFS='|' read -r name source pages heading; do
    name=$(trim "$name") source=$manual/$(trim "$source") pages=$(trim "$pages") heading=$(trim "$heading")
    [ -f "$source" ] || fail "$name: $source does not exist"
    if [ -z "$pages" ]; then
        cp "$source" "$new/$name"
        continue
    fi
    first=${pages%-*} last=${pages#*-}
    pdftotext -q -f "$first" -l "$first" "$source" - | grep -qF "$heading" ||
        fail "$name: page $first of $source does not contain \"$heading\": this version of the" \
            "manual has other pages; correct documents.txt"
    # Into an empty file: a chapter has neither the manual's title nor its table of contents.
    qpdf --warning-exit-0 --empty --pages "$source" "$pages" -- "$new/pages.pdf"
    case $name in
        *.html) pdftohtml -q -i -noframes "$new/pages.pdf" "$new/$name" 2>/dev/null ;;
        *) cp "$new/pages.pdf" "$new/$name" ;;
    esac
    rm "$new/pages.pdf"
    [ -s "$new/$name" ] || fail "$name: pages $pages of $source gave nothing"
done

rm -rf documents
mv "$new" documents
echo "$(find documents -type f | wc -l) documents in $(pwd)/documents"
