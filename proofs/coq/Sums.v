(** Finite sums over the reals: the sum of f 0 … f (n - 1), for every n. *)

Require Import Reals Lra Lia.
From Karat Require Import Carrier.
Local Open Scope R_scope.

Notation total := (@sum on_R).

Lemma total_0 (f : nat -> R) : total 0 f = 0.
Proof. reflexivity. Qed.

Lemma total_S (n : nat) (f : nat -> R) : total (S n) f = total n f + f n.
Proof. reflexivity. Qed.

Lemma total_ext (n : nat) (f g : nat -> R) : (forall i, (i < n)%nat -> f i = g i) -> total n f = total n g.
Proof.
  induction n as [|n IH]; intro H; [reflexivity|].
  rewrite !total_S, (H n), IH by (intros; try apply H; lia). reflexivity.
Qed.

Lemma total_plus (n : nat) (f g : nat -> R) : total n (fun i => f i + g i) = total n f + total n g.
Proof. induction n as [|n IH]; [rewrite !total_0; lra|]. rewrite !total_S, IH. lra. Qed.

Lemma total_minus (n : nat) (f g : nat -> R) : total n (fun i => f i - g i) = total n f - total n g.
Proof. induction n as [|n IH]; [rewrite !total_0; lra|]. rewrite !total_S, IH. lra. Qed.

Lemma total_scal (n : nat) (c : R) (f : nat -> R) : total n (fun i => c * f i) = c * total n f.
Proof. induction n as [|n IH]; [rewrite !total_0; lra|]. rewrite !total_S, IH. lra. Qed.

Lemma total_zero (n : nat) : total n (fun _ => 0) = 0.
Proof. induction n as [|n IH]; [reflexivity|]. rewrite total_S, IH. lra. Qed.

Lemma total_const (n : nat) (c : R) : total n (fun _ => c) = INR n * c.
Proof. induction n as [|n IH]; [simpl; lra|]. rewrite total_S, IH, S_INR. lra. Qed.

Lemma total_swap (n m : nat) (f : nat -> nat -> R) :
  total n (fun i => total m (fun j => f i j)) = total m (fun j => total n (fun i => f i j)).
Proof.
  induction n as [|n IH]; [symmetry; apply total_zero|].
  rewrite total_S, IH, <- total_plus. apply total_ext. reflexivity.
Qed.

Lemma total_le (n : nat) (f g : nat -> R) : (forall i, (i < n)%nat -> f i <= g i) -> total n f <= total n g.
Proof.
  induction n as [|n IH]; intro H; [rewrite !total_0; lra|].
  rewrite !total_S. apply Rplus_le_compat; [apply IH; intros; apply H | apply H]; lia.
Qed.

Lemma total_nonneg (n : nat) (f : nat -> R) : (forall i, (i < n)%nat -> 0 <= f i) -> 0 <= total n f.
Proof. intro H. rewrite <- (total_zero n). apply total_le. exact H. Qed.

Lemma total_abs (n : nat) (f : nat -> R) : Rabs (total n f) <= total n (fun i => Rabs (f i)).
Proof.
  induction n as [|n IH]; [rewrite !total_0, Rabs_R0; lra|].
  rewrite !total_S. eapply Rle_trans; [apply Rabs_triang|]. lra.
Qed.

(** One term picked out: the sum of f i where i = k, and 0 elsewhere. *)
Lemma total_pick (n k : nat) (c : R) : (k < n)%nat -> total n (fun i => if Nat.eqb i k then c else 0) = c.
Proof.
  induction n as [|n IH]; intro H; [lia|]. rewrite total_S. destruct (Nat.eqb_spec n k) as [->|Hn].
  - rewrite (total_ext k _ (fun _ => 0)), total_zero; [lra|].
    intros i Hi. destruct (Nat.eqb_spec i k); [lia|reflexivity].
  - rewrite IH by lia. lra.
Qed.
