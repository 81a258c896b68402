// Checks a log with Go's own packages (golang.org/x/mod/sumdb: tlog, note), which nobody here wrote.
//
//	check DIR VKEY [KEPT]
//
// DIR holds `checkpoint`, `tile/...` and `tile/entries/...` as they were fetched; KEPT is an older
// checkpoint. Every entry's hash is proven to be in the tree of the checkpoint, tile by tile.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const width = 256

type reader struct{ dir string }

func (reader) Height() int                    { return 8 }
func (reader) SaveTiles([]tlog.Tile, [][]byte) {}

// ReadTiles finds tlog's `tile/8/L/N` at C2SP's `tile/L/N`.
func (r reader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(r.dir, path))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func must(err error, what string) {
	if err != nil {
		fmt.Println("WRONG:", what+":", err)
		os.Exit(1)
	}
}

// open verifies the signature of a checkpoint, and reads its three lines.
func open(path string, verifier note.Verifier) tlog.Tree {
	data, err := os.ReadFile(path)
	must(err, path)
	opened, err := note.Open(data, note.VerifierList(verifier))
	must(err, path)
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		must(fmt.Errorf("%q", opened.Text), path)
	}
	// tlog's own form has another first line, and is otherwise the same.
	tree, err := tlog.ParseTree([]byte("go.sum database tree\n" + lines[1] + "\n" + lines[2] + "\n"))
	must(err, path)
	return tree
}

func main() {
	dir := os.Args[1]
	verifier, err := note.NewVerifier(os.Args[2])
	must(err, "key")
	tree := open(filepath.Join(dir, "checkpoint"), verifier)
	hashes := tlog.TileHashReader(tree, reader{dir})

	for start := int64(0); start < tree.N; start += width {
		n := tree.N - start
		path := fmt.Sprintf("%03d", start/width)
		if n >= width {
			n = width
		} else {
			path = fmt.Sprintf("%s.p/%d", path, n)
		}
		bundle, err := os.ReadFile(filepath.Join(dir, "tile/entries", path))
		must(err, "entries")
		for i := start; i < start+n; i++ {
			if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
				must(fmt.Errorf("breaks off"), "entries")
			}
			size := int(binary.BigEndian.Uint16(bundle))
			entry := bundle[2 : 2+size]
			bundle = bundle[2+size:]
			proof, err := tlog.ProveRecord(tree.N, i, hashes)
			must(err, "tiles")
			err = tlog.CheckRecord(proof, tree.N, tree.Hash, i, tlog.RecordHash(entry))
			must(err, fmt.Sprint("entry ", i))
		}
		if len(bundle) != 0 {
			must(fmt.Errorf("%d bytes more", len(bundle)), "entries")
		}
	}
	if len(os.Args) > 3 {
		kept := open(os.Args[3], verifier)
		if kept.N > tree.N {
			must(fmt.Errorf("%d of %d", tree.N, kept.N), "truncated")
		}
		proof, err := tlog.ProveTree(tree.N, kept.N, hashes)
		must(err, "tiles")
		must(tlog.CheckTree(proof, tree.N, tree.Hash, kept.N, kept.Hash), "kept checkpoint")
	}
	fmt.Println("ok", tree.N)
}
